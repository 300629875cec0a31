"""What a test leaves behind is found, and where it came from."""

import asyncio
import gc
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import SyncToAsync, ThreadSensitiveContext, async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created

from ormbridge import atomic, database_sync_to_async
from ormbridge.asgi.context import LeaseContext
from ormbridge.asgi.sync_to_async import on_route
from ormbridge.testing.ending import leases_left, places
from pytest_ormbridge.leaks import place, watched
from tests.settings import CHOICE
from tests.support.green import GREEN

HERE = f"{__file__}:"


def query():
    return User.objects.count()


def test_nothing_is_left(transactional_db):
    """Connections of workers, of asgiref's thread and of the test's own thread are no leaks."""

    async def use():
        await database_sync_to_async(query)()
        await database_sync_to_async(query, thread_sensitive=False)()
        await sync_to_async(query)()
        async with atomic():
            await User.objects.acount()

    with watched() as left:
        query()
        async_to_sync(use)()
        asyncio.run(use())
    assert left == []


def test_closed_connection_is_no_leak(transactional_db):
    """A thread that closes what it opened leaves nothing behind."""

    def query_and_close():
        query()
        connection.close()

    with watched() as left:
        asyncio.run(asyncio.to_thread(query_and_close))
    # Nobody can close a database in memory this way, and the tests' SQLite is a file.
    assert left == []


async def test_lease_of_the_tests_own_transaction(async_db, no_database_leaks):
    """The worker that has the connections of ``async_db`` is no leak."""
    assert await User.objects.acount() == 0


def test_asgirefs_thread_is_busy(gate):
    """A function that keeps asgiref's thread is told of, and does not keep the tests."""
    with watched() as left:
        SyncToAsync.single_thread_executor.submit(gate)
    gate.open.set()
    assert left == ["asgiref's thread still runs a function"]


async def in_a_context():
    async with ThreadSensitiveContext():
        await sync_to_async(query)()


LEAKS = {
    "to_thread": lambda: asyncio.to_thread(query),
    "thread_sensitive=False": lambda: sync_to_async(query, thread_sensitive=False)(),
    "ThreadSensitiveContext": in_a_context,
}


@pytest.mark.parametrize("way", LEAKS)
def test_connection_on_another_thread(transactional_db, way):
    """A connection that stays open on a thread of nobody is named, with its line, and closed."""

    async def leak():
        await LEAKS[way]()

    opened = []

    def note(connection, **kwargs):
        opened.append(connection)

    connection_created.connect(note)
    with watched() as left:
        asyncio.run(leak())
    (message,) = left
    assert message.startswith("a connection to 'default' is still open on ")
    assert f"which is no worker, opened at {HERE}" in message
    assert " in query" in message
    assert [each.connection for each in opened] == [None]


if CHOICE == "sqlite" and sys.version_info >= (3, 13):

    def test_sqlite_connection_that_is_freed(transactional_db):
        """Python warns of what a thread has left open as it frees it."""
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            thread = threading.Thread(target=query)
            thread.start()
            thread.join()
            gc.collect()
        assert [each.category for each in found] == [ResourceWarning]
        assert str(found[0].message).startswith(
            "unclosed database in <sqlite3.Connection object at"
        )


def test_connection_opened_by_a_method_of_django(transactional_db):
    """Where the thread has no line of the user's, that which sent the method there is named."""

    async def leak():
        await asyncio.to_thread(User.objects.count)

    with watched() as left:
        asyncio.run(leak())
    (message,) = left
    assert f"opened at {HERE}" in message
    assert ".leak, called from " in message


@pytest.mark.skipif(GREEN, reason="a loop that ends gives back what rests on it")
def test_held_lease(transactional_db):
    """A lease that nobody will give back is named, with the line that took it, and ended."""

    async def leave():
        with on_route(LeaseContext("GET /slow", holds=True)):
            await database_sync_to_async(query)()

    with watched() as left:
        asyncio.run(leave())
    (message,) = left
    assert message.startswith(
        f"ormbridge-worker-1 is still leased, by GET /slow, idle, taken at {HERE}"
    )
    assert leases_left(1.0) == []


def test_block_left_open(transactional_db):
    """A block that nobody leaves is named."""
    block = atomic()

    async def enter():
        await block.__aenter__()
        await User.objects.acreate(username="left")

    with watched() as left:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(enter())
        loop.close()
    (message,) = left
    assert message.startswith("ormbridge-worker-1 is still leased, by atomic() at test_leaks.py:")
    assert leases_left(1.0) == []
    assert User.objects.count() == 0


def test_running_call_may_end(transactional_db, late):
    """A call that ends a moment after the test is no leak."""

    async def give_up():
        task = asyncio.create_task(database_sync_to_async(late)())
        await late.entered()
        task.cancel()

    with watched() as left:
        asyncio.run(give_up())
    assert left == []


def test_transaction_on_the_own_thread(transactional_db):
    """A transaction that synchronous code leaves open is named."""
    block = transaction.atomic()
    with watched() as left:
        block.__enter__()
    block.__exit__(None, None, None)
    assert left == [
        f"a transaction on 'default' is still open on {threading.current_thread().name}"
    ]


def test_transaction_on_the_thread_of_asgiref(transactional_db):
    """A transaction that stays open on asgiref's one thread is named."""

    @sync_to_async
    def begin():
        transaction.set_autocommit(False)
        query()

    @sync_to_async
    def end():
        transaction.rollback()
        connections.close_all()

    with watched() as left:
        asyncio.run(begin())
    asyncio.run(end())
    assert left == ["a transaction on 'default' is still open on asgiref's thread"]


def test_place_leaves_machinery_out():
    """A place is in the user's lines: pytest, threading and executors say nothing."""
    with ThreadPoolExecutor() as executor:
        assert executor.submit(place).result() == ""
    assert place().startswith(HERE)
    assert "pytest" not in place()


def test_place_in_an_app_with_the_name_of_one_of_pythons_modules():
    """An app of the user's that is named after a module of Python is the user's all the same."""
    variables = {"__name__": "calendar.views", "place": place}
    exec(compile("found = place()", "/app/calendar/views.py", "exec"), variables)
    assert variables["found"].startswith("/app/calendar/views.py:1 in <module>")


if CHOICE == "postgresql":

    def test_place_of_a_connection(transactional_db):
        """Where a connection to PostgreSQL was opened is known by the server's process."""
        connection.close()
        query()
        pid = connection.connection.info.backend_pid
        assert places[pid].startswith(f"opened on {threading.current_thread().name} at {HERE}")
