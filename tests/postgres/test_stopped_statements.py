"""What a stopped statement leaves behind: its transaction is lost, its connection whole or gone."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import importlib
from contextlib import AsyncExitStack

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.contrib.contenttypes.models import ContentType
from django.db import connection, connections, transaction
from django.db.utils import DatabaseError

from ormbridge import (
    TransactionAborted,
    atomic,
    database_sync_to_async,
    pinned,
    stats,
)
from ormbridge.core.connections import (
    connections_of_thread,
)
from ormbridge.core.process import default_pool
from ormbridge.postgres import canceller as canceller_module
from tests.core.support import raw, until
from tests.support.canceller import cancelled, in_context, pid, postgresql

pytestmark = pytest.mark.django_db(transaction=True)


# What is left behind


def fails(raw, timeout):
    raise OSError("no way to the server")


@postgresql
async def test_connection_is_discarded_if_its_statement_cannot_be_cancelled(
    outside, one_worker, monkeypatch, caplog, looks
):
    """If the request fails, the connection goes when the call has ended: it may still arrive."""
    attempts = []

    def send(raw, timeout):
        attempts.append(raw)
        fails(raw, timeout)

    monkeypatch.setattr(canceller_module, "_cancel_statement", send)
    before = await database_sync_to_async(pid)()
    call = asyncio.create_task(database_sync_to_async(User.objects.count)())
    await outside.sees(1)
    await cancelled(call)
    await looks(5)
    outside.let_go()
    assert await database_sync_to_async(pid)() != before
    assert len(attempts) == 1
    assert stats().discarded == 1
    assert caplog.messages == [
        "connection 'default' discarded: its statement could not be cancelled "
        "(OSError('no way to the server'))"
    ]


def write():
    return ContentType.objects.create(app_label="tests", model="canceller")


async def written():
    return await ContentType.objects.filter(app_label="tests", model="canceller").aexists()


async def count_in_vain(outside):
    """Count users until the task is cancelled, and swallow that."""
    call = asyncio.create_task(User.objects.acount())
    await outside.sees(1)
    await cancelled(call)


@postgresql
async def test_swallowed_cancellation_ends_in_a_rollback(outside, one_worker):
    """Code that goes on in a transaction whose statement was cancelled is told that it cannot."""
    with pytest.raises(TransactionAborted, match="was cancelled together with the task"):
        async with atomic():
            await database_sync_to_async(write)()
            await count_in_vain(outside)
            for _ in range(2):
                with pytest.raises(transaction.TransactionManagementError) as refused:
                    await written()
                assert "was cancelled together with the task" in str(refused.value.__cause__)
    outside.let_go()
    assert not await database_sync_to_async(async_to_sync(written))()
    assert stats().discarded == 0


@postgresql
async def test_rollback_that_is_asked_for_after_a_cancellation(outside, one_worker):
    """Who gives a block up with set_rollback(True) is told of no loss; the one around it is."""
    async with atomic():
        await database_sync_to_async(write)()
        await count_in_vain(outside)
        await database_sync_to_async(transaction.set_rollback)(True)
    with pytest.raises(TransactionAborted, match="was cancelled together with the task"):
        async with atomic():
            async with atomic():
                await count_in_vain(outside)
                await database_sync_to_async(transaction.set_rollback)(True)
    outside.let_go()
    assert not await database_sync_to_async(async_to_sync(written))()
    assert stats().discarded == 0


@postgresql
async def test_rollback_to_a_savepoint_does_not_save_the_transaction(outside, one_worker):
    """Where an inner block swallows the cancellation, the outer one cannot go on either."""
    with pytest.raises(TransactionAborted, match="was cancelled together with the task"):
        async with atomic():
            await database_sync_to_async(write)()
            with pytest.raises(TransactionAborted, match="was cancelled together with the task"):
                async with atomic():
                    await count_in_vain(outside)
            with pytest.raises(transaction.TransactionManagementError):
                await written()
    outside.let_go()
    assert not await database_sync_to_async(async_to_sync(written))()
    assert stats().discarded == 0


@postgresql
async def test_next_transaction_is_free_to_go_on(outside, one_worker):
    """The transaction after one with a cancelled statement commits, on the same connection."""
    before = await database_sync_to_async(pid)()
    async with in_context(holds=True):
        with pytest.raises(TransactionAborted):
            async with atomic():
                await count_in_vain(outside)
        async with atomic():
            await database_sync_to_async(write)()
        assert await written()
        assert await database_sync_to_async(pid)() == before


@postgresql
@pytest.mark.parametrize("in_savepoint", [False, True])
async def test_transaction_cannot_go_on_where_its_statement_could_not_be_cancelled(
    outside, one_worker, monkeypatch, in_savepoint
):
    """Where a request fails, the connection is closed, and nothing runs outside its transaction."""
    monkeypatch.setattr(canceller_module, "_cancel_statement", fails)
    before = await database_sync_to_async(pid)()
    raw = await database_sync_to_async(lambda: connection.connection)()
    async with in_context(holds=True):
        with pytest.raises(TransactionAborted, match="was cancelled together with the task"):
            async with AsyncExitStack() as blocks:
                for _ in range(1 + in_savepoint):
                    await blocks.enter_async_context(atomic())
                await database_sync_to_async(write)()
                call = asyncio.create_task(User.objects.acount())
                await outside.sees(1)
                await cancelled(call)
                (worker,) = default_pool().workers
                await until(lambda: any(worker.connections.stopped.values()))
                outside.let_go()
                with pytest.raises(DatabaseError):
                    await User.objects.acreate(username="outside of the transaction")
                assert raw.closed
        assert await User.objects.acount() == 0
        assert not await written()
        assert await database_sync_to_async(pid)() != before


@postgresql
async def test_transaction_in_the_function_is_its_own(outside, one_worker):
    """A transaction that begins and ends in the stopped function leaves nothing behind."""

    def work():
        with transaction.atomic():
            write()
            User.objects.count()

    async with in_context(holds=True):
        call = asyncio.create_task(database_sync_to_async(work)())
        await outside.sees(1)
        await cancelled(call)
        assert not await written()
        outside.let_go()
        assert await User.objects.acount() == 0
    assert stats().discarded == 0


@postgresql
async def test_pooler_is_told_by_the_number_of_the_backend(outside, one_worker, monkeypatch):
    """If the driver's number for the backend is not the server's, the connection is discarded."""
    psycopg = importlib.import_module("psycopg")
    before = await database_sync_to_async(pid)()
    monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", before + 1)
    call = asyncio.create_task(database_sync_to_async(User.objects.count)())
    await outside.sees(1)
    await cancelled(call)
    await until(lambda: stats().discarded == 1)
    monkeypatch.undo()
    assert await database_sync_to_async(pid)() != before


async def test_object_outlives_its_connection_within_a_lease(pool_settings, caplog):
    """Where a stopped statement costs the connection, the lease goes on with Django's object."""
    pool_settings(MAX_THREADS=1)

    def stopped():
        connection.ensure_connection()
        connection.tenant = "blue"
        own = connections_of_thread()
        own.stopped[connections["default"]] = "a test says so"
        return connection.connection

    async with pinned():
        before = await database_sync_to_async(stopped)()
        assert await database_sync_to_async(raw)() is not before
        assert await database_sync_to_async(lambda: connection.tenant)() == "blue"
    assert caplog.messages == ["connection 'default' discarded: a test says so"]
