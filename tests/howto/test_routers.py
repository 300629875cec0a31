"""The page ``howto/routers``: its router, with a primary and a replica that is behind."""

import os
import subprocess
import textwrap
import uuid

import psycopg
import pytest

from tests.guide.conftest import run_python
from tests.servers.harness import address
from tests.settings import CHOICE, CHOICES
from tests.support.examples import example_source
from tests.support.project import Project

# Outside of blocks, Django's a-methods use asgiref's thread, and nobody closes its connection.
STRICT = ("-W", "error", "-W", "ignore::ResourceWarning")
SET_UP = """
import asyncio, contextvars, sys, threading
import django
from django.conf import settings
settings.configure(
    DATABASES={databases!r},
    DATABASE_ROUTERS={routers!r},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import router
from ormbridge import atomic, database_sync_to_async
"""
# Each database says which one it is.
MIGRATE = """
for alias in ("default", "replica"):
    call_command("migrate", verbosity=0, database=alias)
    Group.objects.using(alias).create(name=alias)
"""
ASK = """
async def ask():
    return (await Group.objects.aget()).name
"""


@pytest.fixture(params=["sqlite", "postgresql"] if CHOICE == "postgresql" else ["sqlite"])
def run(request, tmp_path):
    """Return a function that runs a script with a primary, a replica and the example's router."""
    if request.param == "sqlite":
        names = {alias: str(tmp_path / f"{alias}.sqlite3") for alias in ("default", "replica")}
        databases = {
            alias: {"ENGINE": "django.db.backends.sqlite3", "NAME": name}
            for alias, name in names.items()
        }
    else:
        own = uuid.uuid4().hex[:8]
        usual = CHOICES["postgresql"]()
        del usual["TEST"]
        databases = {
            alias: {**usual, "NAME": f"ormbridge_{alias}_{os.getpid()}_{own}"}
            for alias in ("default", "replica")
        }
        request.getfixturevalue("new_databases")([each["NAME"] for each in databases.values()])
    (tmp_path / "replica.py").write_text(example_source("routers/replica"), encoding="utf-8")

    def run(script, *routers):
        source = SET_UP.format(databases=databases, routers=routers) + script
        done = run_python(tmp_path, source, *STRICT, stderr=subprocess.STDOUT)
        assert done.returncode == 0, done.stdout
        return done.stdout

    run(MIGRATE)
    return lambda script: run(ASK + textwrap.dedent(script), "replica.ReplicaRouter")


@pytest.fixture
def new_databases():
    """Return a function that creates databases, which are dropped when the test ends."""
    made = []
    with psycopg.connect(**address("postgres"), autocommit=True) as admin:

        def create(names):
            for name in names:
                admin.execute(f"CREATE DATABASE {name}")
                made.append(name)

        yield create
        for name in made:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_replica(run, recorded):
    """Reads go to the replica, until the task has written; another task is not concerned."""
    script = """
    from replica import on_primary

    async def main():
        print("reads from:", await ask())
        async with on_primary():
            print("in on_primary():", await ask())
        print("after it:", await ask())
        await User.objects.acreate(username="ada")
        print("after a write:", await ask())
        other = asyncio.create_task(ask(), context=contextvars.Context())
        print("another request:", await other)

    asyncio.run(main())
    """
    recorded("routers/replica", run(script))


def test_all_ways_of_reading(run):
    """Wherever Django asks the router, on a worker or on the loop's thread, it answers the same."""
    script = """
    from replica import on_primary

    async def databases():
        yield (await Group.objects.aget()).name
        yield [each.name async for each in Group.objects.all()][0]
        yield [each.name async for each in Group.objects.all().aiterator()][0]
        yield await database_sync_to_async(lambda: Group.objects.get().name)()
        yield Group.objects.all().db
        yield User(pk=1).groups.all().db

    async def main():
        seen = [[each async for each in databases()]]
        async with on_primary():
            seen.append([each async for each in databases()])
        print(seen)

    asyncio.run(main())
    """
    assert run(script) == f"{[['replica'] * 6, ['default'] * 6]}\n"


def test_write_on_a_worker_is_known_to_the_task(run):
    """Where the write was made on a worker, the task that awaited it reads from the primary."""
    script = """
    async def main():
        await database_sync_to_async(User.objects.create)(username="ada")
        print(await ask())

    asyncio.run(main())
    """
    assert run(script) == "default\n"


def test_write_in_on_primary_is_known_after_it(run):
    """A task that wrote in on_primary() reads from the primary after it, too."""
    script = """
    from replica import on_primary

    async def main():
        async with on_primary():
            await User.objects.acreate(username="ada")
        print(await ask())

    asyncio.run(main())
    """
    assert run(script) == "default\n"


def test_write_in_another_task_is_not_known(run):
    """What a task of its own wrote, the task that waits for it does not know of."""
    script = """
    async def main():
        await asyncio.create_task(User.objects.acreate(username="ada"))
        print(await ask())

    asyncio.run(main())
    """
    assert run(script) == "replica\n"


def test_router_with_a_thread_local(run):
    """What a write leaves on its thread changes where the next one on that thread reads."""
    script = """
    class Router:
        here = threading.local()
        def db_for_read(self, model, **hints):
            return "default" if getattr(self.here, "has_written", False) else "replica"
        def db_for_write(self, model, **hints):
            self.here.has_written = True
            return "default"

    settings.ORMBRIDGE = {"MAX_THREADS": 1}
    router.routers = [Router()]
    read = database_sync_to_async(lambda: Group.objects.get().name)

    async def main():
        print(await asyncio.create_task(read(), context=contextvars.Context()))
        await database_sync_to_async(User.objects.create)(username="ada")
        print(await asyncio.create_task(read(), context=contextvars.Context()))

    asyncio.run(main())
    """
    assert run(script).split() == ["replica", "default"]


def test_select_for_update_goes_to_the_primary(run):
    """A row that is locked to be written comes from the primary."""
    script = """
    async def main():
        async with atomic():
            print((await Group.objects.select_for_update().aget()).name)

    asyncio.run(main())
    """
    assert run(script) == "default\n"


# Requests on one thread, one after the other, as under WSGI.
SERVE = """
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started
from django.http import HttpResponse
from django.test import RequestFactory
from django.urls import path

def read(request):
    return HttpResponse(Group.objects.get().name)

async def write(request):
    await User.objects.acreate(username="ada")
    return HttpResponse()

settings.ROOT_URLCONF = __name__
urlpatterns = [path("read/", read), path("write/", write)]
serve = WSGIHandler()

def get(address):
    response = serve(RequestFactory().get(address).environ, lambda *args: None)
    return b"".join(response).decode()
"""
READS_BACK = 'print(get("/read/"), get("/write/") + get("/read/"))\n'
FORGETS = """
from replica import has_written
def forget(**kwargs):
    has_written.set(False)
"""


def test_thread_that_serves_one_after_the_other(run):
    """The requests after one that wrote read from the primary, if they run on its thread."""
    assert run(SERVE + READS_BACK) == "replica default\n"


def test_signal_as_a_request_begins(run):
    """Not so where a receiver of ``request_started`` says that nothing was written."""
    connect = "request_started.connect(forget)\n"
    assert run(SERVE + FORGETS + connect + READS_BACK) == "replica replica\n"


TASKS = """
from celery import Celery
from celery.signals import task_prerun
app = Celery()

@app.task
def read():
    return Group.objects.get().name

@app.task
def write():
    User.objects.create(username="ada")
    return ""

def do(task):
    return task.apply().get()
"""
TASKS_READ_BACK = "print(do(read), do(write) + do(read))\n"


def test_tasks_of_celery_on_one_thread(run):
    """So do the tasks of Celery after one that wrote."""
    assert run(TASKS + TASKS_READ_BACK) == "replica default\n"


def test_signal_as_a_task_begins(run):
    """Not so where a receiver of ``task_prerun`` says that nothing was written."""
    connect = "task_prerun.connect(forget)\n"
    assert run(TASKS + FORGETS + connect + TASKS_READ_BACK) == "replica replica\n"


def test_socket_that_has_written(run):
    """All messages of a socket after its first write read from the primary."""
    script = """
    from asgiref.testing import ApplicationCommunicator
    from channels.consumer import AsyncConsumer, SyncConsumer
    from ormbridge import BridgeMiddleware

    class Consumer(AsyncConsumer):
        async def websocket_receive(self, event):
            if event["text"] == "write":
                await User.objects.acreate(username="ada")
            await self.send({"type": "websocket.send", "text": await ask()})

    class Synchronous(SyncConsumer):
        def websocket_receive(self, event):
            if event["text"] == "write":
                User.objects.create(username="bob")
            self.send({"type": "websocket.send", "text": Group.objects.get().name})

    async def main():
        for consumer in Consumer, Synchronous:
            application = BridgeMiddleware(consumer.as_asgi())
            socket = ApplicationCommunicator(application, {"type": "websocket", "path": "/"})
            for text in "read", "write", "read":
                await socket.send_input({"type": "websocket.receive", "text": text})
                print((await socket.receive_output(30))["text"])
            socket.stop(exceptions=False)

    asyncio.run(main())
    """
    assert run(script).split() == ["replica", "default", "default"] * 2


MIRROR = """
DATABASES["replica"] = {**DATABASES["default"], "TEST": {"MIRROR": "default"}}
DATABASE_ROUTERS = ["replica.ReplicaRouter"]
"""
IN_TESTS = """
import asyncio, contextvars
import pytest
from django.contrib.auth.models import Group
from django.test import TestCase

async def count():
    await Group.objects.acreate(name="ada")
    other_request = Group.objects.acount()
    return await asyncio.create_task(other_request, context=contextvars.Context())

pytestmark = pytest.mark.django_db(databases=["default", "replica"])

async def test_async_db(async_db):
    assert await count() == 0

@pytest.mark.django_db(transaction=True, databases=["default", "replica"])
async def test_that_commits(async_transactional_db):
    assert await count() == 1

class InTestCase(TestCase):
    databases = {"default", "replica"}

    async def test_count(self):
        assert await count() == 0
"""


def test_replica_in_tests(tmp_path):
    """A mirror of the primary finds what a test has written if that was committed."""
    project = Project(tmp_path / "mirror")
    project.configure(MIRROR)
    project.write(replica=example_source("routers/replica"), test_mirror=IN_TESTS)
    done = project.pytest("test_mirror.py")
    assert "3 passed" in done.stdout, done.stdout
