"""Whose connections a green function has, and on which thread they are opened and closed."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from asgiref.sync import markcoroutinefunction, sync_to_async
from django.contrib.auth.models import User
from django.db import DatabaseError, connection, connections
from django.db.models.expressions import RawSQL
from django.db.utils import ConnectionDoesNotExist
from django.http import HttpResponse

from ormbridge import atomic, database_sync_to_async, pinned, stats
from ormbridge.core import process
from tests.core.gate import GUARD
from tests.core.settings import sqlite
from tests.core.support import no_worker_is_leased, thread_name
from tests.support.canceller import in_context, pid
from tests.support.http import get

pytestmark = pytest.mark.django_db(transaction=True)

native_pid = sync_to_async(pid)
bridged_pid = database_sync_to_async(pid)
green_pid = database_sync_to_async(pid, green=True)
count = database_sync_to_async(User.objects.count)


async def method_pid():
    """Return the number of the backend, with a method of Django's."""
    numbered = User.objects.annotate(backend=RawSQL("pg_backend_pid()", []))
    return (await numbered.aget(username="known")).backend


async def in_every_way():
    """Return the backends that five calls have had."""
    await User.objects.aget_or_create(username="known")
    ways = native_pid, bridged_pid, green_pid, method_pid, native_pid
    return {await way() for way in ways}


async def test_request_has_one_connection(serve):
    """A synchronous view and the calls of an asynchronous one have one backend each."""
    seen = []

    async def view(request):
        seen.append(await in_every_way())
        return HttpResponse()

    await get(serve(view))
    assert len(seen[0]) == 1


async def test_synchronous_view_has_the_connection_of_its_middleware(serve):
    """A synchronous view has the backend of the green calls around it."""
    seen = []

    def view(request):
        seen.append(pid())
        return HttpResponse()

    await get(serve(view, f"{__name__}.{Around.__name__}"))
    assert [Around.seen, *seen] == [seen[0]] * 2


class Around:
    """A middleware that makes a green call before the view."""

    async_capable, sync_capable = True, False
    seen = None

    def __init__(self, get_response):
        self.get_response = get_response
        markcoroutinefunction(self)

    async def __call__(self, request):
        Around.seen = await green_pid()
        return await self.get_response(request)


@pytest.mark.parametrize("block", [atomic, pinned])
async def test_block_has_one_connection(block):
    """Whichever way they run, the calls of a block share one backend."""
    async with block():
        assert len(await in_every_way()) == 1


async def test_session_goes_with_the_worker(green):
    """A call on a thread has the connection of the green one before, of the same worker."""
    green(MAX_THREADS=1)
    assert len({await green_pid(), await bridged_pid(), await green_pid()}) == 1
    assert stats().threads == 1


events = []


@pytest.fixture
def where(monkeypatch):
    """Return what is done with connections, and on which threads."""
    events.clear()
    wrapper = type(connections["default"])
    for name in ("connect", "_close"):
        original = getattr(wrapper, name)

        def watched(self, *args, original=original, name=name):
            events.append((name.strip("_"), threading.current_thread().name))
            return original(self, *args)

        monkeypatch.setattr(wrapper, name, watched)
    return events


def reset(held):
    """Note where it runs: what RESET names."""
    events.append(("reset", threading.current_thread().name))


async def test_what_may_block_is_done_on_the_workers_thread(green, where, connection_settings):
    """Connecting, RESET and closing go to the worker's own thread."""
    connection_settings(CONN_MAX_AGE=0)
    green(MAX_THREADS=1, RESET=f"{__name__}.reset")
    await count()
    await database_sync_to_async(connections.close_all, green=True)()
    await no_worker_is_leased()
    process.end(process.default_pool())
    assert {word for word, _ in where} == {"connect", "close", "reset"}
    assert {thread for _, thread in where} == {"ormbridge-worker-1"}


async def test_closed_in_a_green_function(green, where):
    """A green function may close its connection, and goes on with a new one."""
    green(MAX_THREADS=1)

    def function():
        before = pid()
        connection.close()
        return before != pid()

    assert await database_sync_to_async(function, green=True)()
    assert [word for word, _ in where][:3] == ["connect", "close", "connect"]
    assert {thread for _, thread in where} == {"ormbridge-worker-1"}


@pytest.mark.parametrize("made_green", [True, False])
async def test_connection_is_refused_on_other_threads(green, made_green):
    """As in Django. It is used where its lease is served, whichever thread that is."""
    green(MAX_THREADS=1)
    refusals = []

    def function():
        own = connections["default"]
        own.ensure_connection()
        uses = own.cursor, own.commit, own.rollback, own.close
        with ThreadPoolExecutor(1) as other:
            refusals.extend(str(other.submit(use).exception()) for use in uses)
        return own, pid()

    own, backend = await database_sync_to_async(function, green=made_green)()
    again = await database_sync_to_async(function, green=not made_green)()
    assert again == (own, backend)
    with pytest.raises(DatabaseError) as refused:  # nobody's lease runs on this thread
        own.validate_thread_sharing()
    refusals.append(str(refused.value))
    assert len(refusals) == 9
    for each in refusals:
        assert "can only be used in that same thread" in each
        assert "was created in thread id <GreenWorker(ormbridge-worker-1" in each


async def test_connection_is_refused_in_other_green_functions(green):
    """On one thread, too, each has the connections of its own worker."""
    green(MAX_THREADS=2)

    def use(lent):
        with lent.cursor():
            pass

    async with pinned():
        lent = await database_sync_to_async(lambda: connections["default"], green=True)()
        await database_sync_to_async(use, green=True)(lent)
        other = asyncio.create_task(beside(use, lent), context=contextvars.Context())
        with pytest.raises(DatabaseError, match="can only be used in that same thread"):
            await other


async def beside(function, *args):
    """Call *function*, green. A task that begins here has its own worker."""
    await database_sync_to_async(function, green=True)(*args)


async def test_pool_of_psycopg(green, connection_settings):
    """Where psycopg hands connections from worker to worker, each is waited for by who has it."""
    pytest.importorskip("psycopg_pool")
    options = connections.settings["default"]["OPTIONS"]
    pool = {"min_size": 1, "max_size": 3}
    connection_settings(CONN_MAX_AGE=0, OPTIONS={**options, "pool": pool})
    green(MAX_THREADS=3)

    async def one(number):
        async with atomic():
            await User.objects.acreate(username=str(number))
            assert len({await green_pid(), await bridged_pid(), await green_pid()}) == 1

    await asyncio.gather(*(one(number) for number in range(30)))
    assert await count() == 30
    await database_sync_to_async(lambda: connections["default"].close_pool())()


@pytest.fixture
def sqlite_beside(monkeypatch, tmp_path):
    """Make "other" a SQLite database, with a table of users."""
    settings = {**connections.settings["other"], **sqlite(), "NAME": tmp_path / "other.sqlite3"}
    monkeypatch.setitem(connections.settings, "other", settings)

    def create_table():
        with connections["other"].schema_editor() as editor:
            editor.create_model(User)
        connections["other"].close()
        del connections["other"]

    before = connections["other"]
    del connections["other"]
    with ThreadPoolExecutor(1) as executor:
        executor.submit(create_table).result(GUARD)
    yield
    connections["other"] = before


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
async def test_other_databases_stay_on_threads(sqlite_beside, green):
    """Methods on a database that is not PostgreSQL run on a thread; those beside it are green."""
    green(MAX_THREADS=1)
    ran_on = []

    def note(execute, *args):
        ran_on.append(threading.get_ident())
        return execute(*args)

    def watch():
        for alias in ("default", "other"):
            connections[alias].ensure_connection()
            connections[alias].execute_wrappers.append(note)

    async with in_context(holds=True):
        await sync_to_async(watch)()
        await User.objects.using("other").acount()
        await User.objects.using("default").acount()
        await User(username="one").asave(using="other")
        assert await User.objects.using("other").acount() == 1
    own = threading.get_ident()
    assert [thread == own for thread in ran_on][:2] == [False, True]
    assert not any(thread == own for thread in ran_on[2:])


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("options", [{}, {"using": "other"}])
async def test_save_to_another_database_stays_on_a_thread(sqlite_beside, green, options):
    """Where a row is saved counts, and not where it is from."""
    green(MAX_THREADS=1)
    user, ran_on = await User.objects.acreate(username="one"), []

    def note(execute, *args):
        ran_on.append(threading.get_ident())
        return execute(*args)

    def watch():
        for alias in ("default", "other"):
            connections[alias].ensure_connection()
            connections[alias].execute_wrappers.append(note)

    async with in_context(holds=True):
        await sync_to_async(watch)()
        await user.asave(**options)
    assert {thread == threading.get_ident() for thread in ran_on} == {not options}


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
async def test_block_of_an_unknown_database(sqlite_beside, green):
    """It is refused in Django's words, as it is on threads."""
    green(MAX_THREADS=1)
    with pytest.raises(ConnectionDoesNotExist, match="'nowhere' doesn't exist"):
        async with atomic(using="nowhere"):
            pass


async def test_current_worker_is_that_of_the_connections():
    """Code that asks for its worker is told the one whose connections it has."""
    async with in_context(holds=True):
        names = {await sync_to_async(thread_name)() for _ in range(2)}
        names.add(await database_sync_to_async(thread_name, green=True)())
    assert names == {"ormbridge-worker-1"}


async def test_canceller_that_is_late_does_not_take_the_next_leases_thread(green, monkeypatch):
    """Who ends waits for a canceller before anybody else has the worker: not on its thread."""
    green(MAX_THREADS=1)
    await count()
    (worker,) = process.default_pool().workers
    own, taken_on = worker.connections, []
    lock = own.finishing

    class Busy:
        """A canceller has it each time that somebody asks."""

        def acquire(self, blocking=True):
            return blocking and lock.acquire()

        def release(self):
            lock.release()

        def __enter__(self):
            taken_on.append((threading.get_ident(), worker.lease is None))
            return lock.acquire()

        def __exit__(self, *exc):
            lock.release()

    with mock.patch.object(own, "finishing", Busy()):
        await count()
    own = threading.get_ident()
    assert {thread == own for thread, free in taken_on if free} == {True}
    assert {thread == own for thread, free in taken_on if not free} == {False}


async def test_read_on_a_thread_does_not_wait_for_its_own_request(green, serve, gate):
    """A lease of a request that has its reads in line waits behind them, green or not."""
    green(MAX_THREADS=4, TIMEOUT=2)
    others = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(3)]
    await gate.entered(3)

    async def view(request):
        read = database_sync_to_async(User.objects.all().first, green=False)
        await asyncio.gather(read(), green_pid())
        return HttpResponse("both")

    assert await get(serve(view)) == "200 both"
    gate.open.set()
    await asyncio.gather(*others)
