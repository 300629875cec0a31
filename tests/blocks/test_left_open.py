"""Blocks that nobody leaves: the loop ends, or the process."""

# What a block does, and raises, is more than one statement.

import asyncio
import gc
import re
import threading
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from ormbridge import atomic, database_sync_to_async, pinned, stats
from ormbridge.blocks.witness import attend
from ormbridge.core import process
from ormbridge.leases.lease import Lease
from tests.core.gate import GUARD, Gate
from tests.core.support import run, until
from tests.support.blocks import (
    assert_whole,
    create,
    first,
    usernames,
)
from tests.support.green import on_threads

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


# The end of the process

EXIT = """
import atexit
from django.contrib.auth.models import User
from ormbridge import LeaseClosed, atomic, pinned

inside, leave = threading.Event(), asyncio.Event()

async def work():
    async with BLOCK():
        await User.objects.acreate(username="ann")
        inside.set()
        await leave.wait()
        await User.objects.acreate(username="bob")

async def main():
    try:
        await work()
    except RuntimeError as error:
        print(type(error).__name__, flush=True)

loop = asyncio.new_event_loop()
task = loop.create_task(main())
threading.Thread(target=loop.run_forever, daemon=True).start()
inside.wait()

def end():
    loop.call_soon_threadsafe(leave.set)
    while not task.done():
        time.sleep(0.001)

atexit.register(end)
"""


# All that is printed of a block that nobody left.
LEFT = re.compile(r"(?P<block>.*) was not left: its worker is given back.*\n")


def block_of(printed):
    """Return the block of the one line that was *printed*."""
    match = LEFT.fullmatch(printed)
    assert match, printed
    return match["block"]


@pytest.mark.parametrize("block", [atomic, pinned])
async def test_block_that_nobody_is_left_to_leave(transactional_db, block, caplog):
    """As what entered it by hand is freed, its worker is given back, and a line names it."""

    async def enter():
        opened = block()
        await opened.__aenter__()
        await create(username="ann")

    await asyncio.create_task(enter())
    await until(lambda: not stats().holders)
    assert await usernames() == ([] if block is atomic else ["ann"])
    assert block_of(caplog.messages[0] + "\n").startswith(f"{block.__name__}() at test_left_open")
    assert stats().discarded == 0


async def test_block_that_was_left_by_hand(transactional_db, caplog):
    """Once it was left, nothing is said of it as it is freed."""
    opened = atomic()
    await opened.__aenter__()
    await create(username="ann")
    await opened.__aexit__(None, None, None)
    del opened
    gc.collect()
    assert await usernames() == ["ann"]
    assert caplog.text == ""


def test_interpreter_exit_rolls_an_open_block_back():
    """A block that is open as the interpreter exits is rolled back, and the process ends."""
    result = run(EXIT.replace("BLOCK", "atomic"))
    assert block_of(result.stderr) == "atomic() at <string>:19 in work"
    assert result.stdout.splitlines() == ["LeaseClosed"]
    assert result.returncode == 0
    assert User.objects.count() == 0


def test_interpreter_exit_with_a_log_that_fails():
    """A handler that fails as an open block is told of keeps no other call from its end."""
    result = run(
        EXIT.replace("BLOCK", "atomic")
        + """
import logging

class Fails(logging.Handler):
    def emit(self, record):
        raise RuntimeError("no thread is started any more")

logging.getLogger("ormbridge").addHandler(Fails())
runs, exiting = threading.Event(), threading.Event()
threading._register_atexit(exiting.set)

def slow():
    runs.set()
    exiting.wait()
    time.sleep(0.05)  # a pool that does not wait would be gone by then
    print("finished", flush=True)

asyncio.run_coroutine_threadsafe(database_sync_to_async(slow)(), loop)
runs.wait()
"""
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["finished", "LeaseClosed"]
    assert result.returncode == 0
    assert User.objects.count() == 0


def test_interpreter_exit_with_pinned():
    """A pinned() that is open as the interpreter exits loses its worker, and the process ends."""
    result = run(EXIT.replace("BLOCK", "pinned"))
    assert block_of(result.stderr) == "pinned() at <string>:19 in work"
    assert result.stdout.splitlines() == ["LeaseClosed"]
    assert result.returncode == 0
    assert User.objects.count() == 1


def test_interpreter_exit_during_commit():
    """A COMMIT that runs as the interpreter exits is done before the process ends."""
    result = run(
        """
from django.contrib.auth.models import User
from django.db.backends.base.base import BaseDatabaseWrapper
from ormbridge import atomic, stats

committing, exiting = threading.Event(), threading.Event()
threading._register_atexit(exiting.set)
original = BaseDatabaseWrapper._commit

def commit(self):
    committing.set()
    exiting.wait()
    time.sleep(0.05)  # a pool that does not wait would be gone by then
    original(self)
    print("committed", flush=True)

BaseDatabaseWrapper._commit = commit

async def work():
    async with atomic():
        await User.objects.acreate(username="ann")

loop = asyncio.new_event_loop()
task = loop.create_task(work())
threading.Thread(target=loop.run_forever, daemon=True).start()
committing.wait()
"""
    )
    assert result.stdout.splitlines() == ["committed"]
    assert result.returncode == 0
    assert User.objects.count() == 1


def test_interrupt_of_a_frame_with_a_block_open():
    """Ctrl-C in async_to_sync leaves its tasks behind; one in a block does not keep the process."""
    result = run(
        """
import os, signal
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from ormbridge import atomic, stats

interrupted, exiting = threading.Event(), threading.Event()
threading._register_atexit(exiting.set)

def interrupt(*args):
    if not interrupted.is_set():
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)

async def work():
    async with atomic():
        await User.objects.acreate(username="ann")
        while not interrupted.is_set():  # what interrupts a call goes to its caller
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.01)
        await asyncio.to_thread(exiting.wait)

try:
    async_to_sync(work)()
except KeyboardInterrupt:
    interrupted.set()
    print("interrupted", flush=True)
"""
    )
    assert result.stdout.splitlines() == ["interrupted"]
    assert result.returncode == 0
    assert User.objects.count() == 0


BY_HAND = """
import sys
from django.contrib.auth.models import User
from ormbridge import atomic, pinned, stats

async def main():
    block = BLOCK()
    await block.__aenter__()
    CALL
    sys.exit(3)

asyncio.run(main())
"""


@pytest.mark.parametrize("call", ["await User.objects.acreate(username='ann')", ""])
@pytest.mark.parametrize("block", ["atomic", "pinned"])
def test_block_entered_by_hand_and_never_left(transactional_db, block, call):
    """A program that never leaves a block ends as it likes; one line names the block."""
    result = run(BY_HAND.replace("BLOCK", block).replace("CALL", call))
    if block == "pinned" and not call:  # it has never had a worker
        assert result.stderr == ""
    else:
        assert block_of(result.stderr) == f"{block}() at <string>:18 in main"
    assert result.returncode == 3
    assert User.objects.count() == (1 if block == "pinned" and call else 0)


COLLECTED = """
import gc
import logging
import sys
from types import SimpleNamespace
from ormbridge import atomic

gc.disable()

class Collects(logging.StreamHandler):
    def emit(self, record):
        gc.collect()
        super().emit(record)

logging.getLogger("ormbridge").addHandler(Collects())

async def main():
    holder = SimpleNamespace(block=atomic())
    holder.itself = holder
    await holder.block.__aenter__()
    sys.exit(3)

asyncio.run(main())
"""


def test_block_that_is_freed_as_the_exit_tells_of_it(transactional_db):
    """What is collected while the line is written adds none."""
    result = run(COLLECTED)
    assert block_of(result.stderr) == "atomic() at <string>:30 in main"
    assert result.returncode == 3


# The end of a loop


def test_loop_that_ends_rolls_an_open_block_back():
    """asyncio.run() that returns while a task is in a block rolls it back before it does."""

    async def main():
        inside = asyncio.Event()

        async def work():
            async with atomic():
                await create(username="ann")
                inside.set()
                await asyncio.Event().wait()

        tasks.append(asyncio.create_task(work()))
        await inside.wait()

    tasks = []
    asyncio.run(main())
    assert tasks[0].cancelled()
    assert stats().holders == ()
    assert User.objects.count() == 0


def test_loop_that_ends_during_commit_lets_it_stand():
    """asyncio.run() that returns while a task commits waits for the commit."""
    gate = Gate()

    async def main():
        async def work():
            async with atomic():
                await create(username="ann")

        tasks.append(asyncio.create_task(work()))
        await gate.entered()
        # Opened when the loop's end has cancelled the task.
        asyncio.create_task(open_when_cancelled())  # noqa: RUF006 - the loop's end awaits it

    async def open_when_cancelled():
        try:
            await asyncio.Event().wait()
        finally:
            gate.open.set()

    tasks = []
    with first(BaseDatabaseWrapper, "_commit", gate):
        asyncio.run(main())
    assert tasks[0].cancelled()
    assert stats().holders == ()
    assert User.objects.count() == 1


def test_loop_that_ends_during_enter_undoes_it():
    """asyncio.run() that returns while a block is entered undoes that."""
    gate = Gate()

    async def main():
        async def work():
            async with atomic():
                raise AssertionError("must not be entered")

        tasks.append(asyncio.create_task(work()))
        await gate.entered()
        asyncio.get_running_loop().call_soon(gate.open.set)

    tasks = []
    with first(transaction.Atomic, "__enter__", gate):
        asyncio.run(main())
    assert tasks[0].cancelled()
    assert stats().holders == ()


async def test_coroutine_that_is_closed_before_its_block_begins(gate, pool_settings):
    """It leaves the line for a worker at once, and its block never begins."""
    pool_settings(MAX_THREADS=1)
    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()

    async def work():
        async with atomic():
            raise AssertionError("must not be entered")

    with mock.patch.object(transaction.Atomic, "__enter__") as enter:
        coroutine = work()
        coroutine.send(None)
        assert stats().waiting == 1
        coroutine.close()
        assert stats().waiting == 0
        gate.open.set()
        await holder
        await until(lambda: stats().idle == 1)
        assert enter.call_count == 0


async def test_coroutine_that_is_closed_as_its_block_begins(gate, monkeypatch):
    """It waits for nothing, and what has begun by then is undone on the worker."""

    def attend_slowly(connection):
        gate()
        return attend(connection)

    async def work():
        async with atomic():
            raise AssertionError("must not be entered")

    monkeypatch.setattr("ormbridge.blocks.atomic.attend", attend_slowly)
    coroutine = work()
    coroutine.send(None)
    await gate.entered()
    coroutine.close()
    gate.open.set()
    await until(lambda: stats().holders == ())
    assert stats().discarded == 0


# Python reports that the coroutine, which it frees, did not simply end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_loop_that_is_dropped_with_a_block_open():
    """A loop that closes with a task in a block leaves no lease, and no transaction, behind."""
    inside = threading.Event()

    async def work():
        async with atomic():
            await create(username="ann")
            inside.set()
            await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    task = loop.create_task(work())

    async def wait():
        await until(inside.is_set)

    loop.run_until_complete(wait())
    loop.close()
    task._log_destroy_pending = False
    del task, loop
    gc.collect()
    assert_whole()
    assert User.objects.count() == 0


@on_threads
async def test_block_that_is_dismissed_before_its_worker_rests(caplog):
    """It is rolled back as a block, however soon its worker sees that the lease is over."""
    over = threading.Event()
    next_call, close_line = Lease._next, Lease._close_line

    def slow_to_rest(lease, wait):
        if wait and lease.calls == 1:  # the beginning of the block is handed over
            over.wait(GUARD)
        return next_call(lease, wait)

    def close_and_let_it_look(lease):
        calls = close_line(lease)
        over.set()
        if not lease.lock._is_owned():  # where it is, the worker waits for this thread
            for thread in workers:
                thread.join(GUARD)
        return calls

    with (
        mock.patch.object(Lease, "_next", slow_to_rest),
        mock.patch.object(Lease, "_close_line", close_and_let_it_look),
    ):
        block = atomic()
        await block.__aenter__()
        pool = process.default_pool()
        workers = list(pool.workers)
        process.end(pool)
    assert over.is_set()
    assert pool.stats().discarded == 0
    assert "discarded" not in caplog.text
