"""Cancellation and timeouts of a block, in every phase of it."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import contextlib
import functools
import gc
import weakref
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.db import (
    DatabaseError,
    OperationalError,
    connection,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper

from ormbridge import (
    PoolTimeout,
    atomic,
    database_sync_to_async,
    stats,
)
from tests.core.gate import GUARD
from tests.core.support import until
from tests.support.blocks import (
    beside,
    create,
    ended,
    first,
    on_commit,
    turns,
    usernames,
)

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


# Cancellation


async def cancel(task):
    """Cancel *task*, and see that it waits on."""
    task.cancel()
    await turns()
    assert not task.done()


@pytest.mark.parametrize("by", ["cancel", "timeout"])
async def test_cancellation_goes_on_where_the_rollback_fails(monkeypatch, caplog, by):
    """A database that is gone by then is the log's affair: the task is cancelled, not failed."""

    def refuse(self):
        raise OperationalError("the server restarts")

    async def work():
        async with atomic():
            await create(username="ann")
            monkeypatch.setattr(BaseDatabaseWrapper, "_rollback", refuse)
            monkeypatch.setattr(BaseDatabaseWrapper, "connect", refuse)
            if by == "cancel":
                asyncio.current_task().cancel()
            else:
                limit.reschedule(0)  # now: its time is up
            await asyncio.sleep(GUARD)

    with pytest.raises(TimeoutError if by == "timeout" else asyncio.CancelledError):
        async with asyncio.timeout(None) as limit:
            await work()
    monkeypatch.undo()
    assert "was cancelled, and its rollback failed: OperationalError" in caplog.text
    assert await usernames() == []


async def test_error_of_a_rollback_that_fails(monkeypatch):
    """It is raised, as by Django's, where the block failed by itself, which is its context."""

    def refuse(self):
        raise OperationalError("the server restarts")

    with pytest.raises(OperationalError, match="restarts") as caught:
        async with atomic():
            await create(username="ann")
            monkeypatch.setattr(BaseDatabaseWrapper, "_rollback", refuse)
            monkeypatch.setattr(BaseDatabaseWrapper, "connect", refuse)
            raise ZeroDivisionError
    monkeypatch.undo()
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert await usernames() == []


async def test_cancelled_between_calls_rolls_back(caplog):
    """A task that is cancelled while it waits for something else in a block is rolled back.

    Nothing is wrong with that, and nothing is logged.
    """

    async def work(hold):
        async with atomic():
            await create(username="ann")
            await hold()

    async with beside(work) as task:
        task.cancel()
    assert task.cancelled()
    assert caplog.messages == []
    assert await usernames() == []


async def test_cancelled_during_a_call_rolls_back_after_it(gate):
    """A task cancelled during a call of its block ends when that has, rolled back."""

    def slow():
        User.objects.create(username="bob")
        gate()
        User.objects.create(username="cyd")

    async def work():
        async with atomic():
            await create(username="ann")
            await database_sync_to_async(slow)()

    task = asyncio.create_task(work())
    await gate.entered()
    await cancel(task)
    await cancel(task)
    gate.open.set()
    await ended(task)
    assert task.cancelled()
    assert await usernames() == []


async def test_block_that_swallows_its_cancellation_goes_on(gate):
    """A block that handles the cancellation itself goes on, in its transaction."""

    async def work():
        async with atomic():
            await create(username="ann")
            with contextlib.suppress(asyncio.CancelledError):
                await database_sync_to_async(gate)()
            await create(username="bob")

    task = asyncio.create_task(work())
    await gate.entered()
    task.cancel()
    await asyncio.sleep(0)
    gate.open.set()
    await ended(task)
    assert task.exception() is None
    assert await usernames() == ["ann", "bob"]


async def test_enter_cancelled_before_it_starts_never_starts(gate, pool_settings):
    """A block whose entering waits for a worker and is cancelled never begins, and leaves the line.

    It is given up at once: nothing has to be undone.
    """
    pool_settings(MAX_THREADS=1)
    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()

    async def work():
        async with atomic():
            raise AssertionError("must not be entered")

    with mock.patch.object(transaction.Atomic, "__enter__") as enter:
        task = asyncio.create_task(work())
        await until(lambda: stats().waiting == 1)
        task.cancel()
        await ended(task)
        assert task.cancelled()
        assert stats().waiting == 0
        gate.open.set()
        await holder
        await until(lambda: stats().idle == 1)
        assert enter.call_count == 0


@pytest.mark.parametrize("times", [1, 2])
async def test_enter_cancelled_while_it_runs_is_undone(gate, times):
    """A block whose entering is cancelled while it runs is rolled back before the task ends."""
    events = []

    async def work():
        async with atomic():
            raise AssertionError("must not be entered")

    with (
        first(transaction.Atomic, "__enter__", gate),
        first(transaction.Atomic, "__exit__", lambda: events.append("undone")),
    ):
        task = asyncio.create_task(work())
        await gate.entered()
        for _ in range(times):
            await cancel(task)
        gate.open.set()
        await ended(task)
    assert task.cancelled()
    assert events == ["undone"]
    assert stats().holders == ()


async def test_nested_enter_cancelled_while_it_runs_is_undone(gate):
    """A nested block whose entering is cancelled leaves the outer one as it was."""

    async def work():
        async with atomic():
            await create(username="ann")
            with first(transaction.Atomic, "__enter__", gate):
                with contextlib.suppress(asyncio.CancelledError):
                    async with atomic():
                        raise AssertionError("must not be entered")
            depth = await database_sync_to_async(lambda: len(connection.atomic_blocks))()
            await create(username="bob")
            return depth

    task = asyncio.create_task(work())
    await gate.entered()
    await cancel(task)
    gate.open.set()
    await ended(task)
    assert task.result() == 1
    assert await usernames() == ["ann", "bob"]


async def test_enter_that_fails_while_it_is_cancelled(gate, caplog):
    """A cancelled entering that fails by itself has nothing to undo; the task is cancelled.

    The failure is nobody's any more: asyncio does not log it as one that was never seen.
    """

    def fail():
        gate()
        raise DatabaseError("no")

    async def work():
        async with atomic():
            raise AssertionError("must not be entered")

    with first(transaction.Atomic, "__enter__", fail):
        task = asyncio.create_task(work())
        await gate.entered()
        await cancel(task)
        gate.open.set()
        await ended(task)
    assert task.cancelled()
    del task  # it has the future, in its traceback
    gc.collect()
    assert caplog.messages == []


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_during_commit(gate, times):
    """A cancellation during COMMIT goes on when the commit stands, callbacks included."""
    ran = []

    async def callback():
        await asyncio.sleep(0)
        ran.append("async")

    async def work():
        async with atomic():
            await create(username="ann")
            await on_commit(callback)
            await on_commit(functools.partial(ran.append, "plain"))

    with first(BaseDatabaseWrapper, "_commit", gate):
        task = asyncio.create_task(work())
        await gate.entered()
        for _ in range(times):
            await cancel(task)
        gate.open.set()
        await ended(task)
    assert task.cancelled()
    assert ran == ["plain", "async"]
    assert await usernames() == ["ann"]


async def test_cancelled_during_commit_is_in_no_cycle(gate):
    """What a function had is freed with its task, which was cancelled during the COMMIT."""
    refs = []

    async def work():
        def kept():
            pass

        refs.append(weakref.ref(kept))
        async with atomic():
            await create(username="ann")

    gc.disable()
    try:
        with first(BaseDatabaseWrapper, "_commit", gate):
            task = asyncio.create_task(work())
            await gate.entered()
            await cancel(task)
            gate.open.set()
            await ended(task)
        assert task.cancelled()
        del task
        await turns()
        assert refs[0]() is None
    finally:
        gc.enable()


async def test_cancelled_during_a_commit_that_fails(gate):
    """A cancellation during a COMMIT that fails goes on, and names the failure as its cause."""

    def fail():
        gate()
        raise DatabaseError("refused")

    causes = []

    async def work():
        try:
            async with atomic():
                await create(username="ann")
        except asyncio.CancelledError as error:
            causes.append(str(error.__cause__))
            raise

    with first(BaseDatabaseWrapper, "_commit", fail):
        task = asyncio.create_task(work())
        await gate.entered()
        await cancel(task)
        gate.open.set()
        await ended(task)
    assert task.cancelled()
    assert causes == ["refused"]
    assert await usernames() == []


async def test_cancelled_during_rollback(gate):
    """A cancellation during ROLLBACK goes on when that is done."""

    async def work():
        async with atomic():
            await create(username="ann")
            raise ZeroDivisionError

    with first(BaseDatabaseWrapper, "_rollback", gate):
        task = asyncio.create_task(work())
        await gate.entered()
        await cancel(task)
        gate.open.set()
        await ended(task)
    assert task.cancelled()
    assert await usernames() == []


async def test_cancelled_while_the_end_waits_in_line(gate):
    """The end of a block cannot be cancelled while it waits behind a call either."""

    async def work():
        async with atomic():
            await create(username="ann")
            asyncio.create_task(database_sync_to_async(gate)())  # noqa: RUF006 - the gate's end
            await asyncio.sleep(0)

    task = asyncio.create_task(work())
    await gate.entered()
    await cancel(task)
    gate.open.set()
    await ended(task)
    assert task.cancelled()
    assert await usernames() == ["ann"]


async def test_cancelled_in_an_async_callback():
    """A cancellation while an async callback runs reaches it, and ends the row."""
    ran = []

    async def work(hold):
        async def callback():
            try:
                await hold()
            except asyncio.CancelledError:
                ran.append("cancelled")
                raise

        async def behind():
            ran.append("behind")

        async with atomic():
            await create(username="ann")
            await on_commit(callback)
            await on_commit(behind)

    async with beside(work) as task:
        task.cancel()
    assert task.cancelled()
    assert ran == ["cancelled"]
    assert await usernames() == ["ann"]


async def test_timeout_around_a_block(gate):
    """asyncio.timeout() around a block rolls it back and raises TimeoutError."""

    async def work():
        async with asyncio.timeout(None) as timeout:
            async with atomic():
                await create(username="ann")
                timeout.reschedule(0)
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(work(), GUARD)
    assert await usernames() == []


async def test_timeout_inside_a_block():
    """asyncio.timeout() inside a block is handled there, and the block commits."""
    async with atomic():
        await create(username="ann")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        await create(username="bob")
    assert await usernames() == ["ann", "bob"]


async def test_timeout_during_commit(gate):
    """A timeout that comes during COMMIT raises TimeoutError when the commit stands."""

    async def work():
        async with asyncio.timeout(None) as timeout:
            async with atomic():
                await create(username="ann")
                asyncio.get_running_loop().call_soon(timeout.reschedule, 0)

    with first(BaseDatabaseWrapper, "_commit", gate):
        task = asyncio.create_task(work())
        await gate.entered()
        await turns()
        gate.open.set()
        await ended(task)
    assert isinstance(task.exception(), TimeoutError)
    assert await usernames() == ["ann"]


async def test_timeout_of_an_enter_that_waits_for_a_worker(gate, pool_settings):
    """asyncio.timeout() ends the wait for a worker."""
    pool_settings(MAX_THREADS=1)
    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            async with atomic():
                raise AssertionError("must not be entered")
    gate.open.set()
    await holder


async def test_enter_waits_at_most_timeout_for_a_worker(gate, pool_settings):
    """A block that has no worker within TIMEOUT raises PoolTimeout; nothing is left of it."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.01)
    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    with pytest.raises(PoolTimeout, match="1 of 1 leased"):
        async with atomic():
            raise AssertionError("must not be entered")
    gate.open.set()
    await holder


async def test_failing_task_group_rolls_the_blocks_of_its_tasks_back(parallel_transactions):
    """When one task of a TaskGroup fails, the blocks of the others are rolled back."""
    inside = asyncio.Event()

    @atomic()
    async def stay():
        await create(username="ann")
        inside.set()
        await asyncio.Event().wait()

    async def fail():
        await inside.wait()
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(stay())
            group.create_task(fail())
    assert await usernames() == []


async def test_anyio_cancel_scope():
    """A cancel scope of anyio, which cancels again and again, rolls the block back."""
    anyio = pytest.importorskip("anyio")
    with anyio.CancelScope() as scope:
        async with atomic():
            await create(username="ann")
            scope.cancel()
            await create(username="bob")
    assert scope.cancelled_caught
    assert await usernames() == []


async def test_anyio_cancel_scope_during_commit(gate):
    """A cancel scope of anyio that is cancelled during COMMIT lets it stand, callbacks included."""
    anyio = pytest.importorskip("anyio")
    scopes, ran = [], []

    async def callback():
        await turns()
        ran.append("async")

    async def work():
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            async with atomic():
                await create(username="ann")
                await on_commit(callback)
        return scope.cancelled_caught

    with first(BaseDatabaseWrapper, "_commit", gate):
        task = asyncio.create_task(work())
        await gate.entered()
        scopes[0].cancel()
        await turns()
        assert not task.done()
        gate.open.set()
        await ended(task)
    assert task.result() is True
    assert ran == ["async"]
    assert await usernames() == ["ann"]
