"""The page ``howto/celery``: its tasks, in a worker of Celery's own and beside one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import ormbridge
from ormbridge import atomic, database_sync_to_async
from tests.core.gate import GUARD
from tests.support.examples import example_source
from tests.support.project import Project

# A broker that is a folder: it takes no server, and several processes may use it.
BROKER = """
from pathlib import Path
for name in ("queue", "results"):
    (BASE_DIR / name).mkdir(exist_ok=True)
CELERY_BROKER_URL = "filesystem://"
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "data_folder_in": BASE_DIR / "queue",
    "data_folder_out": BASE_DIR / "queue",
    "control_folder": BASE_DIR / "control",
}
CELERY_RESULT_BACKEND = f"file://{BASE_DIR / 'results'}"
"""
# What the tests ask of a worker beyond the example.
MORE = """
import threading
from django.db import connection, transaction
from ormbridge import database_sync_to_async

together = threading.Barrier(2, timeout=60)

def place(wait=False):
    if wait:
        together.wait()
    return threading.current_thread().name, connection.in_atomic_block

async def places(number):
    call = database_sync_to_async(place)
    return sorted(await asyncio.gather(*[call(number > 1) for _ in range(number)]))

@app.task
def in_transaction():
    with transaction.atomic():
        return async_to_sync(places)(1)

@app.task
def side_by_side():
    return asyncio.run(places(2))
"""
USERS = """
from django.contrib.auth.models import User
for name in "ada", "bob":
    User.objects.create(username=name)
"""
ASK = """
import sys
from tasks import app
result = app.send_task(f"tasks.{sys.argv[1]}", eval(sys.argv[2]))
print(result.get(timeout=60))
"""


@pytest.fixture(scope="module")
def ask(tmp_path_factory):
    """Return a function that sends a task to a running worker, and returns its result."""
    project = Project(tmp_path_factory.mktemp("celery") / "project", "sqlite, on disk")
    project.configure(BROKER)
    project.write(tasks=example_source("celery/tasks") + MORE, ask=ASK)
    for arguments in ["migrate"], ["shell", "-c", USERS]:
        done = project.manage(*arguments)
        assert done.returncode == 0, done.stderr
    environment = {
        **{name: value for name, value in os.environ.items() if "DJANGO" not in name},
        "PYTHONPATH": str(Path(ormbridge.__file__).parents[1]),
    }
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--concurrency", "2"]
    with (project.path / "log").open("w") as log:
        worker = subprocess.Popen(
            command, cwd=project.path, env=environment, stdout=log, stderr=subprocess.STDOUT
        )

    def send(task, *arguments):
        done = subprocess.run(
            [sys.executable, "ask.py", task, repr(arguments)],
            cwd=project.path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=2 * GUARD,
            check=False,
        )
        assert done.returncode == 0, done.stderr + (project.path / "log").read_text()
        return done.stdout.strip()

    yield send
    worker.send_signal(signal.SIGTERM)
    worker.wait(GUARD)


def test_worker(ask, recorded):
    """A worker of Celery runs both tasks."""
    output = [f"greet: {ask('greet', 'ada')}", f"greet_all: {ask('greet_all', ['ada', 'bob'])}"]
    recorded("celery/tasks", "\n".join(output))


def test_async_to_sync_is_the_thread_of_the_task(ask):
    """Under ``async_to_sync`` a call runs on the task's thread, and in its transaction."""
    assert ask("in_transaction") == "[['MainThread', True]]"


def test_run_is_the_pool(ask):
    """Under ``asyncio.run`` calls run at the same time, on workers of the process's own pool."""
    assert ask("side_by_side") == "[['ormbridge-worker-1', False], ['ormbridge-worker-2', False]]"


IN_TESTS = """
from django.contrib.auth.models import User
from django.test import TestCase, TransactionTestCase
from ormbridge import database_sync_to_async
from tasks import app, greet_all

app.conf.task_always_eager = True

class InTransactionTestCase(TransactionTestCase):
    def setUp(self):
        User.objects.create(username="ada")

    async def greet(self):
        return (await database_sync_to_async(greet_all.delay)(["ada"])).get()

    async def test_greet(self):
        self.assertEqual(await self.greet(), ["Hello, ada"])

class InTestCase(TestCase):
    setUp, greet = InTransactionTestCase.setUp, InTransactionTestCase.greet

    async def test_greet(self):
        with self.assertRaises(User.DoesNotExist):
            await self.greet()
"""


def test_eager_task_that_runs_a_loop(tmp_path):
    """Run through the bridge, it sees the rows of a TransactionTestCase, and none of a TestCase."""
    project = Project(tmp_path / "eager")
    project.configure('TEST_RUNNER = "ormbridge.testing.BridgeRunner"')
    project.write(tasks=example_source("celery/tasks"), tests=IN_TESTS)
    done = project.manage("test", "--noinput")
    assert "Ran 2 tests" in done.stderr, done.stderr
    assert "\nOK\n" in done.stderr, done.stderr


@pytest.fixture
def queue(load_example):
    """Return the example's task *greet*, and a function that counts what waits for a worker."""
    module = load_example("celery/tasks")
    module.app.conf.broker_url = "memory://"

    def count():
        with module.app.connection_for_read() as broker:
            return broker.SimpleQueue("celery").qsize()

    yield module.greet, count
    with module.app.connection_for_read() as broker:
        broker.SimpleQueue("celery").clear()


@pytest.mark.django_db(transaction=True)
async def test_task_is_sent_after_the_commit(queue):
    """``delay_on_commit`` through the bridge sends the task when the block has committed."""
    greet, count = queue
    async with atomic():
        await database_sync_to_async(greet.delay_on_commit)("ada")
        assert count() == 0
    assert count() == 1


@pytest.mark.django_db(transaction=True)
async def test_task_is_not_sent_after_a_rollback(queue):
    """A block that fails sends nothing."""
    greet, count = queue

    @atomic()
    async def send_and_fail():
        await database_sync_to_async(greet.delay_on_commit)("ada")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await send_and_fail()
    assert count() == 0


async def test_eager_task_in_async_code(queue):
    """Under ``task_always_eager`` the task of an async view fails, and only its result says so."""
    greet, _ = queue
    greet.app.conf.task_always_eager = True
    result = greet.delay("ada")
    assert result.state == "FAILURE"
    assert str(result.result).startswith("You cannot use AsyncToSync in the same thread")


@pytest.mark.django_db(transaction=True)
async def test_eager_task_through_the_bridge(queue, ada):
    """Sent through the bridge, it runs on a worker."""
    greet, _ = queue
    greet.app.conf.task_always_eager = True
    result = await database_sync_to_async(greet.delay)("ada")
    assert result.get() == "Hello, ada"
