"""Generators and cursors that outlive their call: freed in another, they change nothing there."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
from contextlib import suppress
from unittest import mock

import pytest
from django.contrib.auth.models import Group
from django.db import DatabaseError, InterfaceError, connection, transaction

from ormbridge import TransactionAborted, atomic, database_sync_to_async
from tests.core.gate import GUARD
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


@pytest.mark.skipif(CHOICE == "mariadb", reason="there it is closed by nobody")
async def test_cursor_of_a_call_that_failed():
    """It is closed on its thread, and not where somebody lets go of the error."""

    def fail():
        kept.append(connection.chunked_cursor())
        kept[0].execute("SELECT 1 UNION SELECT 2")
        kept[0].fetchone()
        raise KeyError

    await names()
    with pytest.raises(KeyError):
        await database_sync_to_async(fail)()
    with pytest.raises((DatabaseError, InterfaceError)):
        await database_sync_to_async(kept[0].fetchone)()
    kept[0].close()  # and that asks for nothing


@pytest.mark.skipif(CHOICE != "mariadb", reason="another database's drivers take turns")
async def test_iterator_that_outlives_its_call():
    """It has its rows: to be closed, on whatever thread, it asks nothing of the connection."""

    def leave():
        kept.append(connection.chunked_cursor())
        kept[0].execute("SELECT 1 UNION SELECT 2")
        return kept[0].fetchone()

    await names()
    assert await database_sync_to_async(leave)() == (1,)
    assert kept[0].fetchone() == (2,)
    with mock.patch.object(kept[0], "cursor") as cursor:
        kept[0].close()
    cursor.close.assert_not_called()


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
