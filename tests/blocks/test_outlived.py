"""Generators and cursors that outlive their call: freed in another, they change nothing there."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import gc
import weakref
from contextlib import suppress
from unittest import mock

import pytest
from django.contrib.auth.models import Group
from django.db import DatabaseError, InterfaceError, connection, transaction

from ormbridge import TransactionAborted, atomic, database_sync_to_async, pinned
from tests.core.gate import GUARD, Gate
from tests.settings import CHOICE

pytestmark = [
    pytest.mark.django_db(transaction=True),
    # What Python says of an error in a generator that is freed.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
postgresql = pytest.mark.skipif(CHOICE != "postgresql", reason="another database has none of it")

kept = []


@pytest.fixture(autouse=True)
def one_worker(pool_settings):
    """Let there be one worker with a connection, and nothing that is kept."""
    pool_settings(MAX_THREADS=1)
    kept.clear()
    yield
    kept.clear()


create = database_sync_to_async(Group.objects.create)


@database_sync_to_async
def names():
    return sorted(Group.objects.values_list("name", flat=True))


def suspended_in(block):
    """Leave a generator behind that is suspended in *block*."""

    def generate():
        with block():
            yield

    kept.append(generate())
    next(kept[0])


leave_in_atomic = database_sync_to_async(lambda: suspended_in(transaction.atomic))


async def test_generator_in_a_transaction_that_was_rolled_back(whole):
    """Freed in the transaction of another call, it does not roll that one back."""

    def free():
        with transaction.atomic():
            Group.objects.create(name="before")
            kept.clear()
            Group.objects.create(name="after")

    await leave_in_atomic()
    await database_sync_to_async(free)()
    assert await names() == ["after", "before"]
    whole(1)


async def test_generator_that_is_freed_in_a_block(whole):
    """Freed in a call of atomic(), it does not roll that back."""
    await leave_in_atomic()
    async with atomic():
        await create(name="before")
        await database_sync_to_async(kept.clear)()
        await create(name="after")
    assert await names() == ["after", "before"]
    whole(1)


async def test_block_in_which_a_function_left_a_transaction_open():
    """It says that nothing was saved: its end would have been that of the inner one."""
    with pytest.raises(TransactionAborted, match="of a function in it was not left"):
        async with atomic():
            await create(name="lost")
            await leave_in_atomic()
    assert await names() == []
    await create(name="next")
    await database_sync_to_async(kept.clear)()
    assert await names() == ["next"]


async def test_failed_block_in_which_a_function_left_a_transaction_open():
    """It is rolled back with that, and the next call has the connection."""
    with pytest.raises(KeyError):
        async with atomic():
            await create(name="lost")
            await leave_in_atomic()
            raise KeyError
    assert await names() == []


async def test_generator_around_statements_of_another_call():
    """Freed in another call, one inside of execute_wrapper() does not take that one's wrapper."""
    seen = []

    def guard(execute, *args):
        seen.append(args)
        return execute(*args)

    def free():
        with connection.execute_wrapper(guard):
            kept.clear()
            Group.objects.count()

    def leave():
        suspended_in(lambda: connection.execute_wrapper(lambda execute, *args: execute(*args)))

    await names()
    await database_sync_to_async(leave)()
    await database_sync_to_async(free)()
    assert len(seen) == 1


async def test_cursor_that_outlives_its_lease():
    """It is closed on its thread, and not where somebody lets go of it."""

    def leave():
        kept.append(connection.chunked_cursor())
        kept[0].execute("SELECT 1 UNION SELECT 2")
        kept[0].fetchone()

    await names()
    await database_sync_to_async(leave)()
    with pytest.raises((DatabaseError, InterfaceError, TypeError)):
        await database_sync_to_async(kept[0].fetchone)()
    with mock.patch.object(kept[0], "cursor") as cursor:
        kept[0].close()
    cursor.close.assert_not_called()


async def test_cursor_that_is_closed_on_another_thread():
    """It is closed on its own one, before the next statement there."""
    left = []

    def leave():
        kept.append(connection.chunked_cursor())
        kept[0].execute("SELECT 1 UNION SELECT 2")

    await names()
    async with pinned():
        await database_sync_to_async(leave)()
        cursors = (await witness()).cursors
        await asyncio.to_thread(kept[0].close)
        left.append(kept[0] in cursors)
        await names()
        left.append(kept[0] in cursors)
    assert left == [True, False]


async def test_cursor_that_is_closed_is_freed():
    """It has its rows no longer than Django's own, and does not wait for the collector."""

    def close():
        cursor = connection.chunked_cursor()
        cursor.execute("SELECT 1")
        cursor.close()
        return weakref.ref(cursor)

    await names()
    gc.disable()
    try:
        assert (await database_sync_to_async(close)())() is None
    finally:
        gc.enable()


@database_sync_to_async
def witness():
    return connection.ormbridge_witness


@postgresql
async def test_iterator_that_outlives_its_lease():
    """Its cursor ends with that, and a loop that frees it does not wait for another call."""
    await Group.objects.abulk_create([Group(name=str(number)) for number in range(2)])
    gate = Gate()

    def leave():
        connection.close()  # so that the cursor is the first that the connection has
        kept.append(Group.objects.iterator(chunk_size=1))
        next(kept[0])

    def cursors():
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE '_django%%'")
            return cursor.fetchone()[0]

    def hold():
        connection.ensure_connection()
        with connection.connection.lock:
            gate()

    await database_sync_to_async(leave)()
    assert await database_sync_to_async(cursors)() == 0
    holding = asyncio.create_task(database_sync_to_async(hold)())
    await gate.entered()
    await asyncio.wait_for(asyncio.to_thread(kept.clear), GUARD / 10)
    gate.open.set()
    await holding


@pytest.mark.skipif(CHOICE != "sqlite", reason="on another server nobody waits for who reads")
async def test_iterator_that_outlives_its_lease_on_sqlite():
    """It reads no more: who writes after others is not told that the database is locked."""
    await Group.objects.abulk_create([Group(name=str(number)) for number in range(200)])
    await names()

    def leave():
        kept.append(Group.objects.iterator(chunk_size=1))
        next(kept[0])

    await database_sync_to_async(leave)()
    await asyncio.to_thread(write_elsewhere)
    await create(name="here")


def write_elsewhere():
    try:
        Group.objects.create(name="elsewhere")
    finally:
        connection.close()


@postgresql
async def test_iterator_that_outlives_its_savepoint():
    """Freed in the transaction around it, it does not abort that."""
    await create(name="row")

    def fail():
        with transaction.atomic():
            kept.append(Group.objects.iterator(chunk_size=1))
            next(kept[0])
            raise KeyError

    async with atomic():
        with suppress(KeyError):
            await database_sync_to_async(fail)()
        await database_sync_to_async(kept.clear)()
        await create(name="saved")
    assert await names() == ["row", "saved"]


@postgresql
async def test_copy_that_is_left_in_the_middle(whole):
    """Its generator keeps the lock of psycopg's connection: the worker does not wait for it."""

    def copy():
        with connection.cursor() as cursor:
            if not hasattr(cursor, "copy"):  # psycopg2
                return
            with cursor.copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT") as rows:
                yield from rows

    def leave():
        kept.append(copy())
        return next(kept[0], None)

    row = await asyncio.wait_for(database_sync_to_async(leave)(), GUARD)
    assert await names() == []
    whole(row is not None)


@postgresql
async def test_notifications_that_are_left_in_the_middle(whole):
    """Their generator keeps the lock of psycopg's connection, which the next call would take."""

    def listen():
        with connection.cursor() as cursor:
            cursor.execute("LISTEN news")
            cursor.execute("NOTIFY news")
        if hasattr(connection.connection, "pgconn"):  # psycopg 3
            kept.append(connection.connection.notifies())
            return next(kept[0])
        return None

    news = await asyncio.wait_for(database_sync_to_async(listen)(), GUARD)
    assert await asyncio.wait_for(names(), GUARD) == []
    whole(news is not None)


@postgresql
async def test_notifications_that_a_block_goes_on_with():
    """Between two calls of one lease they wait for the next one."""
    connected = []

    def listen():
        with connection.cursor() as cursor:
            cursor.execute("LISTEN news")
            cursor.execute("NOTIFY news, 'first'")
            cursor.execute("NOTIFY news, 'second'")
        connected.append(connection.connection)
        if hasattr(connection.connection, "pgconn"):  # psycopg 3
            kept.append(connection.connection.notifies(timeout=GUARD, stop_after=2))
        return [next(each).payload for each in kept]

    def go_on():
        connected.append(connection.connection)
        return [news.payload for each in kept for news in each]

    async with pinned():
        first = await database_sync_to_async(listen)()
        assert first + await database_sync_to_async(go_on)() in (["first", "second"], [])
        assert await names() == []
    assert connected[0] is connected[1]
