"""Event loops that green functions wait on: several at once, moved, nested, of other kinds."""

import asyncio
import contextvars
import errno
import os
import select
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib.util import find_spec

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import OperationalError, connection

from ormbridge import PoolTimeout, atomic, database_sync_to_async, pinned, stats
from ormbridge.core import process
from tests.core.gate import GUARD, block_until
from tests.core.support import until
from tests.support.canceller import in_context
from tests.support.loops import assert_whole, green_where, in_thread, where

pytestmark = pytest.mark.django_db(transaction=True)


def ask_for_pid():
    """Return the number of the backend, by the word of the server."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def test_two_loops_at_once(green):
    """Two loops in two threads share the pool; each runs its own green functions."""
    green(MAX_THREADS=3)
    together = threading.Barrier(2)

    async def many():
        own = threading.get_ident()
        together.wait(GUARD)

        async def one():
            async with atomic():
                seen = {await green_where() for _ in range(3)}
                await database_sync_to_async(where)()
            return seen

        seen = await asyncio.gather(*(one() for _ in range(20)))
        return set().union(*seen) == {own}

    with ThreadPoolExecutor(2) as executor:
        runs = [executor.submit(asyncio.run, many()) for _ in range(2)]
        assert [run.result(GUARD) for run in runs] == [True, True]
    assert stats().threads <= 3
    assert_whole()


async def test_loop_that_waits_for_another_one(green):
    """A call that a loop in another thread makes for the request is refused in time.

    A synchronous function of a library runs a coroutine there, in a copy of its context, while the
    loop of the request waits for it.
    """
    green(MAX_THREADS=1, TIMEOUT=0.2)
    async with in_context(holds=True):
        await database_sync_to_async(where)()
        inside = contextvars.copy_context()
        executor = ThreadPoolExecutor(1)
        outcome = executor.submit(inside.run, asyncio.run, green_where())
        with pytest.raises(PoolTimeout, match="for its turn"):
            outcome.result(10)
        executor.shutdown()
        assert await green_where() == threading.get_ident()
        # This one lets its loop go on meanwhile.
        there = await asyncio.to_thread(asyncio.run, green_where())
        assert there == threading.get_ident()


def test_worker_goes_from_loop_to_loop(green):
    """A connection that was waited for on one loop is waited for on the next one."""
    green(MAX_THREADS=1)
    green_pid = database_sync_to_async(ask_for_pid, green=True)
    pids = {asyncio.run(green_pid()) for _ in range(3)}
    pids.add(in_thread(asyncio.run, green_pid()))
    pids.add(asyncio.run(green_pid()))
    assert len(pids) == 1


def test_waiting_calls_of_two_loops(green):
    """Who waits in line on another loop gets the worker there."""
    green(MAX_THREADS=1)
    entered, leave = threading.Event(), threading.Event()

    async def hold():
        async with in_context(holds=True):
            await green_where()
            entered.set()
            await asyncio.to_thread(leave.wait, GUARD)

    async def wait():
        call = asyncio.create_task(green_where())
        await until(lambda: stats().waiting == 1)
        leave.set()
        return await call, threading.get_ident()

    with ThreadPoolExecutor(2) as executor:
        holder = executor.submit(asyncio.run, hold())
        assert entered.wait(GUARD)
        seen, own = executor.submit(asyncio.run, wait()).result(GUARD)
        holder.result(GUARD)
    assert seen == own
    assert_whole()


def test_loop_that_is_moved_to_another_thread(green):
    """A loop that goes on, on another thread, has green functions there."""
    green(MAX_THREADS=1)
    loop = asyncio.new_event_loop()
    here = loop.run_until_complete(green_where())
    there = in_thread(loop.run_until_complete, asyncio.wait_for(green_where(), GUARD))
    again = loop.run_until_complete(green_where())
    assert (here, again) == (threading.get_ident(), threading.get_ident())
    assert there != here
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert_whole()


async def test_asyncio_run_in_a_green_function(green):
    """Another event loop in a green function works; the one around it stands still meanwhile."""
    green(MAX_THREADS=2)

    async def inner():
        await asyncio.sleep(0)
        seen = [await database_sync_to_async(where)()]
        seen.append(await green_where())
        async with atomic():
            seen.append(await green_where())
        return seen

    def function():
        User.objects.exists()
        seen = asyncio.run(inner())
        User.objects.exists()
        return seen

    own = threading.get_ident()
    seen = await database_sync_to_async(function, green=True)()
    assert [thread == own for thread in seen] == [False, True, True]
    assert await green_where() == own
    await until(lambda: stats().idle == stats().threads)


async def test_asyncio_run_without_a_worker(green):
    """Where no other worker is free, a call from there is refused, as on a thread."""
    green(MAX_THREADS=1)

    def function():
        return asyncio.run(green_where())

    with pytest.raises(Exception, match="loop-on-worker"):
        await database_sync_to_async(function, green=True)()
    assert await green_where() == threading.get_ident()


@pytest.mark.parametrize("has_called", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("block", [None, atomic, pinned])
async def test_asyncio_run_where_a_worker_is_held(green, block, has_called):
    """In a block a call from there is refused at once; a request goes on with its one worker."""
    green(MAX_THREADS=2, TIMEOUT=GUARD)

    def function():
        return asyncio.run(green_where())

    async with in_context(holds=True) if block is None else block():
        if has_called:
            await green_where()
        with pytest.raises(PoolTimeout, match="loop-on-worker") if block else nullcontext():
            await database_sync_to_async(function, green=True)()
        await green_where()
        assert len(stats().holders) == 1


@pytest.mark.parametrize("ends", ["lets_go", "terminates"])
def test_without_epoll(green, held, monkeypatch, ends):
    """Elsewhere than on Linux the loop watches each connection by itself."""
    monkeypatch.delattr(select, "epoll")
    green(MAX_THREADS=2)

    async def call():
        calls = [asyncio.create_task(green_where()) for _ in range(2)]
        await held.sees(2)
        if ends == "terminates":
            waiting = "datname = current_database() AND wait_event_type = 'Lock'"
            end = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {waiting}"
            held.watcher.execute(end)
        held.let_go()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for worker in process.default_pool().workers:
            for each in worker.connections.opened:
                handle = each.connection.ormbridge_handle
                assert not asyncio.get_running_loop().remove_reader(handle)
        return outcomes

    outcomes = asyncio.run(call())
    if ends == "terminates":
        assert [type(each) for each in outcomes] == [OperationalError, OperationalError]
    else:
        assert outcomes == [threading.get_ident()] * 2
    assert_whole()


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python before 3.12")
async def test_eager_tasks(green):
    """Tasks that begin at once, some in the middle of others, are right."""
    green(MAX_THREADS=2)
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

    async def one(number):
        async with atomic():
            calls = [green_where(), User.objects.acount(), database_sync_to_async(where)()]
            seen = await asyncio.gather(*calls)
            await User.objects.acreate(username=str(number))
        return seen[0]

    seen = await asyncio.gather(*(one(number) for number in range(20)))
    assert set(seen) == {threading.get_ident()}
    assert await database_sync_to_async(User.objects.count, green=True)() == 20


def test_debug_mode(green, caplog):
    """In debug mode, in which a loop looks at who calls it, all is as without."""
    green(MAX_THREADS=2)
    caplog.set_level("ERROR")
    assert asyncio.run(use_everything(), debug=True) == 20
    assert caplog.text == ""
    assert_whole()


@pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")
def test_uvloop(green, held):
    """uvloop's loops do."""
    import uvloop

    held.let_go()
    green(MAX_THREADS=2)
    assert uvloop.run(use_everything()) == 20
    assert_whole()


@pytest.mark.skipif(find_spec("uvloop") is None, reason="uvloop is not installed")
def test_uvloop_and_a_connection_that_breaks(green, held):
    """It says only once that a socket is readable that broke: the call fails, and does not hang."""
    import uvloop

    held.let_go()
    green(MAX_THREADS=1)

    async def run():
        async with pinned():
            pid = await database_sync_to_async(ask_for_pid, green=True)()
            held.watcher.execute("SELECT pg_terminate_backend(%s)", [pid])
            gone = f"pid = {pid}"
            block_until(lambda: not held._count(gone))  # and the loop sees nothing of it
            with pytest.raises(OperationalError):
                await asyncio.wait_for(green_where(), GUARD)

    for _ in range(3):
        uvloop.run(run())
    assert_whole()


async def use_everything():
    """Make calls of all kinds at one time; return how many rows were written."""

    async def one(number):
        async with in_context(holds=number % 2):
            async with atomic():
                await User.objects.acreate(username=str(number))
                assert await green_where() == threading.get_ident()
                assert await database_sync_to_async(where)() != threading.get_ident()
                assert await database_sync_to_async(async_to_sync(count), green=True)()
            task = asyncio.create_task(database_sync_to_async(sleep, green=True)())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    await asyncio.gather(*(one(number) for number in range(20)))
    await until(lambda: stats().idle == stats().threads)
    return await User.objects.acount()


async def count():
    return await User.objects.acount()


def sleep():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(60)")


class LoopWithoutWatch(asyncio.SelectorEventLoop):
    """A loop that watches no sockets, as Windows' proactor."""

    add_reader = asyncio.AbstractEventLoop.add_reader


def test_loop_that_watches_no_sockets():
    """There everything runs on threads."""

    async def run():
        async with in_context(holds=True):
            own = await green_where(), await database_sync_to_async(where)()
        return {*own, await green_where()}

    with asyncio.Runner(loop_factory=LoopWithoutWatch) as runner:
        assert threading.get_ident() not in runner.run(run())


async def test_no_file_descriptor_left(green, monkeypatch):
    """Where the system has no handle to watch a connection by, what is sent has its answer."""
    green(MAX_THREADS=1)

    def refuse(fd):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as none_left:
        none_left.setattr(os, "dup", refuse)
        await database_sync_to_async(User.objects.create, green=True)(username="anna")
    assert await green_where() == threading.get_ident()
    assert await User.objects.acount() == 1
    assert stats().discarded == 0
