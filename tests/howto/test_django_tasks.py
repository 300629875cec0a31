"""The page ``howto/django-tasks``: async tasks, in the worker of django-tasks-db."""

import django
import pytest

from tests.support.examples import example_source
from tests.support.project import Project

SETTINGS = """
INSTALLED_APPS.append("django_tasks_db")
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
"""
MORE = """
import asyncio, threading
from django.db import connection
from ormbridge import database_sync_to_async

def name_of_thread():
    return threading.current_thread().name

@task
async def places():
    calls = [database_sync_to_async(name_of_thread)() for _ in range(2)]
    return await asyncio.gather(*calls)

async def fail_to_sign_up(username):
    async with atomic():
        await sign_up(username)
        raise ZeroDivisionError
"""
QUEUE = """
import asyncio
from contextlib import suppress
from tasks import *
from django_tasks_db.models import DBTaskResult
"""
SHOW = f"""{QUEUE}
for each in DBTaskResult.objects.order_by("enqueued_at"):
    print(each.task_path, each.status, each.return_value, sep=", ")
"""


@pytest.fixture
def project(tmp_path):
    """Return a project with the database backend of django-tasks-db."""
    project = Project(tmp_path / "project", "sqlite, on disk")
    project.configure(SETTINGS)
    project.write(tasks=example_source("django_tasks/tasks") + MORE)
    run(project, "migrate")
    return project


def run(project, *arguments):
    """Run ``manage.py`` and return what it prints."""
    done = project.manage(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shell(project, source):
    """Run *source* in a process of its own."""
    return run(project, "shell", "--no-imports", "-c", source)


def work(project):
    """Have the worker do what is in the queue, and return what became of it."""
    run(project, "db_worker", "--batch", "--no-startup-delay")
    return shell(project, SHOW).splitlines()


if django.VERSION >= (6, 0):

    def test_worker(project, recorded):
        """A worker runs the async task, and stores what it returns."""
        shell(project, f"{QUEUE}\nasyncio.run(sign_up('ada'))")
        assert shell(project, SHOW).splitlines() == ["tasks.greet, READY, None"]
        lines = work(project)
        assert lines == ["tasks.greet, SUCCESSFUL, Hello, ada"]
        recorded("django_tasks/tasks", "\n".join(lines))

    def test_task_of_a_block_that_failed(project):
        """A task that was enqueued in a block goes with the block's rollback."""
        source = "with suppress(ZeroDivisionError):\n    asyncio.run(fail_to_sign_up('ada'))"
        shell(project, f"{QUEUE}\n{source}")
        assert work(project) == []

    def test_task_runs_on_the_thread_of_its_worker(project):
        """What an async task calls runs on the worker's one thread."""
        shell(project, f"{QUEUE}\nplaces.enqueue()")
        assert work(project) == ["tasks.places, SUCCESSFUL, ['MainThread', 'MainThread']"]
