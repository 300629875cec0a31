"""Cancelled before start: never runs. Cancelled while running: the worker stays taken."""

import asyncio
import functools
import logging
import threading
from contextlib import suppress

import pytest
from asgiref.sync import async_to_sync

from ormbridge.core.bridge import database_sync_to_async
from ormbridge.core.call import Call
from ormbridge.core.mailbox import mailbox_of
from ormbridge.core.process import stats
from tests.core.gate import GUARD
from tests.core.support import until


async def test_cancelled_before_start_never_runs(gate, pool_settings):
    """A call that waits for a worker and is cancelled never runs, and leaves the line."""
    pool_settings(MAX_THREADS=1)
    ran = []
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    waiting = asyncio.create_task(database_sync_to_async(ran.append)("ran"))
    await asyncio.sleep(0)
    assert stats().waiting == 1
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert stats().waiting == 0
    gate.open.set()
    await running
    await database_sync_to_async(len)("")
    assert ran == []
    assert stats().calls == 2


async def test_cancelled_between_handing_over_and_start_never_runs():
    """A call cancelled when a worker has it but has not begun never runs."""
    ran = []
    call = Call(lambda: ran.append("ran"), len, mailbox_of(asyncio.get_running_loop()))
    from ormbridge.core.process import default_pool

    assert call.cancel()
    assert not call.claim()  # what the worker asks first
    default_pool().take(call)
    await until(lambda: stats().idle == 1)
    assert ran == []
    assert stats().calls == 0


async def test_cancelled_while_running_keeps_its_worker(gate, pool_settings):
    """A cancelled call that runs keeps its worker until the function returns."""
    pool_settings(MAX_THREADS=1)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    running.cancel()
    await asyncio.wait([running], timeout=GUARD)
    assert running.cancelled()
    assert [what for _, what, _ in stats().holders] != []
    following = asyncio.create_task(database_sync_to_async(len)("abc"))
    await asyncio.sleep(0)
    assert stats().waiting == 1
    gate.open.set()
    assert await following == 3


async def test_error_after_cancellation_is_logged(gate, caplog):
    """What a function raises after its caller gave up is logged for debugging."""
    caplog.set_level(logging.DEBUG, "ormbridge")

    def fail():
        gate()
        raise LookupError("nobody hears this")

    running = asyncio.create_task(database_sync_to_async(fail)())
    await gate.entered()
    running.cancel()
    await asyncio.wait([running], timeout=GUARD)
    gate.open.set()
    await until(lambda: stats().idle == 1)
    await until(lambda: "nobody hears this" in caplog.text)
    assert "failed after its caller gave up" in caplog.text


async def test_wait_for_gives_up_in_time(gate):
    """asyncio.wait_for returns when its time is up; the function runs on."""
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(running, 0.01)
    assert len(stats().holders) == 1
    gate.open.set()


async def test_cancellation_reaches_what_the_function_awaits():
    """Cancelling a call cancels the coroutine that its function awaits through async_to_sync."""
    began, seen = asyncio.Event(), []

    async def forever():
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    task = asyncio.create_task(database_sync_to_async(async_to_sync(forever))())
    await asyncio.wait_for(began.wait(), GUARD)
    task.cancel()
    await asyncio.wait([task], timeout=GUARD)
    assert task.cancelled()
    assert seen == ["cancelled"]


async def test_coroutine_that_survives_cancellation_finishes_the_call():
    """If what the function awaits goes on in spite of the cancellation, the call goes on too."""
    began = asyncio.Event()

    async def stubborn():
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "finished"

    task = asyncio.create_task(database_sync_to_async(async_to_sync(stubborn))())
    await asyncio.wait_for(began.wait(), GUARD)
    task.cancel()
    assert await asyncio.wait_for(task, GUARD) == "finished"


async def test_second_cancellation_cancels_what_the_function_awaits_then():
    """A call that went on after a cancellation is cancelled by the next one as by the first."""
    began, end = [asyncio.Event(), asyncio.Event()], asyncio.Event()
    seen = []

    async def stubborn():
        began[0].set()
        with suppress(asyncio.CancelledError):
            await end.wait()

    async def obedient():
        began[1].set()
        try:
            await asyncio.wait_for(end.wait(), GUARD)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    def function():
        async_to_sync(stubborn)()
        async_to_sync(obedient)()

    task = asyncio.create_task(database_sync_to_async(function)())
    await asyncio.wait_for(began[0].wait(), GUARD)
    task.cancel()
    await asyncio.wait_for(began[1].wait(), GUARD)
    task.cancel()
    await asyncio.wait([task])
    end.set()
    assert task.cancelled()
    assert seen == ["cancelled"]


async def test_function_that_raises_cancelled_error_cancels_its_caller():
    """A CancelledError out of the function is a cancellation for the caller, as in asgiref."""

    def fail():
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await database_sync_to_async(fail)()


async def test_task_group_cancels_its_other_calls(gate, pool_settings):
    """When a call in a TaskGroup fails, the calls that wait never run."""
    pool_settings(MAX_THREADS=1)
    ran = []

    def fail():
        gate()
        raise LookupError("first")

    async def group():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(database_sync_to_async(fail)())
            await gate.entered()
            for number in range(3):
                tasks.create_task(database_sync_to_async(ran.append)(number))
            await asyncio.sleep(0)
            # Cancels the siblings before the worker is free for them.
            tasks.create_task(fails_on_the_loop())

    async def fails_on_the_loop():
        raise KeyError("on the loop")

    with pytest.raises(BaseExceptionGroup):
        await group()
    gate.open.set()
    await until(lambda: stats().idle == 1)
    assert ran == []


async def test_str_names_the_users_function():
    """A call is named after the user's function in messages, a partial after what it calls."""
    mailbox = mailbox_of(asyncio.get_running_loop())
    assert str(Call(len, threading.get_ident, mailbox)) == "_thread.get_ident"
    assert str(Call(len, until, mailbox)) == "tests.core.support.until"
    partial = functools.partial(functools.partial(until, 1), 2)
    assert str(Call(len, partial, mailbox)) == "tests.core.support.until"


async def test_str_never_asks_for_a_repr():
    """The name of an object is its class's: its repr may query the database, or fail."""

    class Callable:
        def __call__(self):
            raise StopIteration

        def __repr__(self):
            raise LookupError("this repr fails")

    name = "tests.core.test_call.test_str_never_asks_for_a_repr.<locals>.Callable"
    assert str(Call(len, Callable(), mailbox_of(asyncio.get_running_loop()))) == name
    with pytest.raises(RuntimeError, match=f"{name} raised StopIteration".replace(".", r"\.")):
        await asyncio.wait_for(database_sync_to_async(Callable())(), GUARD)
