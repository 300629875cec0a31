"""Event loops that end, are closed or stop under green functions: no worker is lost with one."""

import asyncio
import gc
import importlib
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import User

from ormbridge import BridgeMiddleware, atomic, database_sync_to_async, stats
from ormbridge.core import process
from ormbridge.core.call import Call
from ormbridge.core.connections import ThreadConnections, here
from ormbridge.green import runner
from ormbridge.leases.lease import Lease
from tests.core.gate import GUARD, Gate, block_until
from tests.core.support import run_python, until
from tests.support.canceller import in_context
from tests.support.loops import (
    answer_all,
    assert_whole,
    green_where,
    in_thread,
    use_up_the_slice,
    where,
)

pytestmark = pytest.mark.django_db(transaction=True)


def test_loop_closed_with_a_call_that_waits(green, held):
    """A green function whose loop was closed under it ends with an error; its worker is free."""
    green(MAX_THREADS=1)
    errors = []

    def function():
        try:
            return User.objects.count()
        except BaseException as error:
            errors.append(str(error))
            raise

    async def begin():
        task = asyncio.create_task(database_sync_to_async(function, green=True)())
        await held.sees(1)
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begin())
    loop.close()
    task._log_destroy_pending = False
    del task
    held.let_go()
    assert asyncio.run(green_where()) == threading.get_ident()
    assert errors == ["the event loop was closed, and a call on it was ended [loop-closed]"]
    assert_whole()


@pytest.mark.parametrize("closes", [True, False])
def test_thread_that_ends_with_a_call_that_waits(green, held, closes):
    """So it is where the thread ends that the loop ran on, whether it closes the loop or not."""
    green(MAX_THREADS=1)
    loop = asyncio.new_event_loop()

    async def begin():
        task = asyncio.create_task(green_where())
        await held.sees(1)
        task._log_destroy_pending = False

    def run():
        loop.run_until_complete(begin())
        if closes:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(GUARD)
    held.let_go()
    block_until(lambda: stats().idle == stats().threads == 1)
    assert_whole()
    loop.close()


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("step", [Call.run, Call.finish, Call.deliver, Lease._next])
def test_interrupted_between_two_functions(green, monkeypatch, step, holds):
    """Ctrl-C comes out of the loop, which ends, and the worker of the call is free.

    The call is cancelled. If it had not run by then, it never does.
    """
    green(MAX_THREADS=1)
    owner = Lease if step is Lease._next else Call
    interrupts, ran = [KeyboardInterrupt], []

    def interrupted(*args, **kwargs):
        if interrupts:
            raise interrupts.pop()
        return step(*args, **kwargs)

    async def call():
        async with in_context(holds=holds):
            await green_where()
            monkeypatch.setattr(owner, step.__name__, interrupted)
            await database_sync_to_async(ran.append, green=True)(1)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(call())
    comes_before = step.__name__ == "run" or (owner is Lease and not holds)
    assert (interrupts, ran) == ([], [] if comes_before else [1])
    assert_whole()


def test_interrupted_on_the_way_out_of_a_greenlet(green, monkeypatch):
    """Ctrl-C leaves nothing of a worker on the loop's thread: the next call has one."""
    green(MAX_THREADS=1)
    original = runner._set_running_loop

    def interrupted(loop):
        original(loop)
        if loop is not None:
            monkeypatch.undo()
            raise KeyboardInterrupt

    async def begin():
        monkeypatch.setattr(runner, "_set_running_loop", interrupted)
        await database_sync_to_async(int, green=True)()

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(begin())
    assert here.worker is None
    assert_whole()


@pytest.mark.parametrize("turn", [1, 2])
def test_interrupted_on_the_way_into_a_greenlet(green, monkeypatch, turn):
    """What Ctrl-C keeps from going on, as it begins or has an answer, does so in the next turn."""
    green(MAX_THREADS=1)
    turns, clock = [], time.monotonic

    def interrupted():
        turns.append(sys._getframe(1).f_code.co_name)
        if turns.count("resume") == turn:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return clock()

    async def begin():
        await green_where()  # it connects
        monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=interrupted))
        return await green_where()

    with asyncio.Runner() as of_loop:
        loop = of_loop.get_loop()
        task = loop.create_task(begin())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        block_until(lambda: loop.run_until_complete(asyncio.sleep(0)) or stats().idle == 1)
    assert_whole()


@pytest.mark.parametrize("runs_green", [True, False])
@pytest.mark.parametrize("step", ["finish", "deliver"])
def test_interrupted_with_a_call_in_line(green, monkeypatch, step, runs_green):
    """The call that has the worker next has it all the same: it was given to that before."""
    green(MAX_THREADS=1)
    interrupts, original, others = [KeyboardInterrupt], getattr(Call, step), []

    def interrupted(*args, **kwargs):
        if interrupts:
            raise interrupts.pop()
        return original(*args, **kwargs)

    def function():
        other = database_sync_to_async(where, green=runs_green)()
        others.append(executor.submit(asyncio.run, other))
        block_until(lambda: stats().waiting == 1)
        monkeypatch.setattr(Call, step, interrupted)

    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(database_sync_to_async(function, green=True)())
        assert others[0].result(GUARD) != threading.get_ident()
    assert interrupts == []
    assert_whole()


def test_loop_closed_with_calls_in_line(green, held):
    """What waited in line behind it is not run any more, and loses no worker."""
    green(MAX_THREADS=1)
    ran = []

    async def begin():
        first = asyncio.create_task(green_where())
        await held.sees(1)
        rest = [asyncio.create_task(database_sync_to_async(ran.append, green=True)(1))]
        rest.append(asyncio.create_task(database_sync_to_async(ran.append)(2)))
        await until(lambda: stats().waiting == 2)
        return [first, *rest]

    loop = asyncio.new_event_loop()
    tasks = loop.run_until_complete(begin())
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False
    del tasks, task
    held.let_go()
    assert asyncio.run(green_where()) == threading.get_ident()
    assert_whole()


def test_loop_closed_with_a_call_that_has_a_worker(green, held):
    """A call that was to begin in the next turn of the loop never does."""
    green(MAX_THREADS=1)
    loop, ran = asyncio.new_event_loop(), []

    def stop():
        ran.append("stop")
        loop.stop()

    async def begin():
        calls = [green_where(), database_sync_to_async(stop, green=True)()]
        calls.append(database_sync_to_async(ran.append, green=True)("next"))
        tasks = [asyncio.create_task(calls.pop(0))]
        await held.sees(1)
        tasks += map(asyncio.create_task, calls)
        await until(lambda: stats().waiting == 2)
        return tasks

    tasks = loop.run_until_complete(begin())
    held.let_go()
    loop.run_forever()
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False
    del tasks, task
    assert asyncio.run(green_where()) == threading.get_ident()
    assert ran == ["stop"]
    assert_whole()


@pytest.mark.parametrize("closes", [True, False])
def test_call_in_line_of_a_loop_that_stopped(green, closes):
    """What is in line there when a worker is free runs on its thread, and keeps it no longer."""
    green(MAX_THREADS=1)
    gate, ran = Gate(), []

    async def begin():
        task = asyncio.create_task(database_sync_to_async(ran.append, green=True)(1))
        await until(lambda: stats().waiting == 1)
        return task

    with ThreadPoolExecutor(1) as executor:
        holder = executor.submit(asyncio.run, database_sync_to_async(gate)())
        block_until(lambda: stats().holders)
        loop = asyncio.new_event_loop()
        task = loop.run_until_complete(begin())
        gate.open.set()
        holder.result(GUARD)
    block_until(lambda: stats().idle == 1)
    if closes:
        loop.close()
        task._log_destroy_pending = False
    else:
        loop.run_until_complete(asyncio.wait_for(task, GUARD))
        loop.close()
    assert ran == [1]
    assert_whole()


@pytest.mark.parametrize("in_request", [False, True], ids=["script", "request"])
def test_loop_closed_with_a_block_on_a_thread_that_lives_on(green, in_request):
    """A block on a loop that stops and is closed is rolled back as its coroutine is freed."""
    green(MAX_THREADS=1)

    def work():
        loop = asyncio.new_event_loop()

        async def write():
            async with atomic():
                await User.objects.acreate(username="ann")
                loop.stop()
                await asyncio.Event().wait()

        task = loop.create_task(write())
        loop.run_forever()
        loop.close()
        task._log_destroy_pending = False
        del task
        gc.collect()

    async def app(scope, receive, send):
        await asyncio.to_thread(work)

    async def main():
        if in_request:
            await BridgeMiddleware(app)({"type": "http", "method": "GET", "path": "/"}, None, None)
        else:
            await asyncio.to_thread(work)
        await until(lambda: stats().idle == 1)  # the thread of to_thread() lives on
        return await User.objects.acount()

    assert asyncio.run(main()) == 0
    assert_whole()


@pytest.mark.filterwarnings(
    "ignore:unclosed event loop:ResourceWarning", "ignore:unclosed <socket:ResourceWarning"
)
def test_loop_that_nobody_closes_is_freed_with_its_thread(green):
    """A thread that ends without closing its loop leaves nothing of it."""
    green(MAX_THREADS=1)
    left = []

    def run():
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(green_where()) == threading.get_ident()
        left.append(weakref.ref(loop))

    for _ in range(5):
        in_thread(run)
    assert_whole()
    block_until(lambda: gc.collect() is not None and sum(map(bool, (loop() for loop in left))) <= 1)
    # The connection knows the last one, which another test would meet as it is freed.
    for loop in filter(None, [loop() for loop in left]):
        loop.close()


def test_loop_that_ends_waits_for_what_runs(green, held):
    """A loop that shuts down ends what it runs first."""
    green(MAX_THREADS=1)
    ended = []

    def function():
        try:
            User.objects.exists()
        finally:
            ended.append(stats().holders[0][0])

    async def begin():
        task = asyncio.create_task(database_sync_to_async(function, green=True)())
        await held.sees(1)
        return task

    asyncio.run(begin())  # which cancels the task, and so its statement
    assert ended == ["ormbridge-worker-1"]
    held.let_go()
    assert_whole()


def test_loop_that_ends_under_a_call_on_a_thread(green, monkeypatch):
    """A call that takes too long, on its worker's thread, is waited for; the worker goes on."""
    green(MAX_THREADS=1)
    runner = importlib.import_module("ormbridge.green.runner").Runner
    monkeypatch.setattr(ThreadConnections, "BOUND", -1.0)
    gate, end, wake = Gate(), runner.end, runner.wake

    def open_and_end(self):
        gate.open.set()
        end(self)

    def wake_late(self):
        """Wake one that was ended after it has come to its end."""
        if self._ended and threading.get_ident() != self.thread:
            block_until(lambda: self._greenlet is None)
        wake(self)

    monkeypatch.setattr(runner, "end", open_and_end)
    monkeypatch.setattr(runner, "wake", wake_late)

    async def begin():
        async with in_context(holds=True):
            await green_where()
            call = asyncio.create_task(database_sync_to_async(gate)())
            await gate.entered()
            return call

    loop = asyncio.new_event_loop()
    call = loop.run_until_complete(begin())
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert loop.run_until_complete(call) == "ormbridge-worker-1"
    loop.close()
    assert_whole()


def test_loop_that_goes_on_after_its_shutdown(green):
    """What comes after a loop has ended its async generators still runs, as they may do."""
    green(MAX_THREADS=1)
    loop = asyncio.new_event_loop()
    for _ in range(2):
        call = asyncio.wait_for(green_where(), GUARD)
        assert loop.run_until_complete(call) == threading.get_ident()
        loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert_whole()


def test_loop_closed_with_an_answer_that_was_seen(green, held):
    """A call that has its answer, and was to go on in the next turn, ends with an error as well."""
    green(MAX_THREADS=2)
    loop, ends = asyncio.new_event_loop(), []

    def function():
        try:
            User.objects.count()
        except BaseException as error:
            ends.append(str(error))
            raise
        ends.append("well")
        loop.stop()
        use_up_the_slice()

    async def begin():
        call = database_sync_to_async(function, green=True)
        tasks = [asyncio.create_task(call()) for _ in range(2)]
        await held.sees(2)
        return tasks

    tasks = loop.run_until_complete(begin())
    answer_all(held)
    loop.run_forever()
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False
    del task, tasks
    assert asyncio.run(green_where()) == threading.get_ident()
    ended = "the event loop was closed, and a call on it was ended [loop-closed]"
    assert ends == ["well", ended]
    assert_whole()


def test_loop_left_without_a_shutdown(green):
    """A loop that nobody shuts down keeps no worker, and is freed."""
    green(MAX_THREADS=1)
    left = []
    for _ in range(5):
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(green_where()) == threading.get_ident()
        loop.close()
        left.append(weakref.ref(loop))
        del loop
    assert_whole()
    # The thread knows its last one, and the watchdog for a moment what it saw.
    block_until(lambda: gc.collect() is not None and not any(loop() for loop in left[:-2]))


@pytest.mark.parametrize("call", [lambda function, *args: function(*args), in_thread])
def test_loop_that_goes_on_after_the_pool_has_ended(green, call):
    """As that of a session of tests, or in one thread after the other: it watches no more then."""
    green(MAX_THREADS=1)
    loop, watched = asyncio.new_event_loop(), []
    for _ in range(3):
        call(loop.run_until_complete, green_where())
        watched.append(len(loop._selector.get_map()))
        process.end_pools(GUARD)
    loop.close()
    assert watched == watched[:1] * 3
    assert_whole()


def test_loops_that_ended_are_freed(green):
    """So is each one that was shut down."""
    green(MAX_THREADS=1)
    left = []

    async def work():
        left.append(weakref.ref(asyncio.get_running_loop()))
        await green_where()

    for _ in range(5):
        asyncio.run(work())
    for _ in range(5):
        in_thread(asyncio.run, work())
    assert_whole()
    block_until(lambda: gc.collect() is not None and sum(map(bool, (loop() for loop in left))) <= 2)


def test_request_that_rests_as_its_loop_ends(green, monkeypatch):
    """A request that its loop's end leaves open has its worker given back, at once."""
    green(MAX_THREADS=1)
    monkeypatch.setattr(ThreadConnections, "BOUND", 10 * GUARD)

    async def application(scope, receive, send):
        await green_where()
        await asyncio.Event().wait()

    async def begin():
        scope = {"type": "http", "method": "GET", "path": "/"}
        request = asyncio.create_task(BridgeMiddleware(application)(scope, None, None))
        await until(lambda: [holder[1] for holder in stats().holders] == ["GET /, idle"])
        return request

    loop = asyncio.new_event_loop()
    request = loop.run_until_complete(begin())
    loop.run_until_complete(asyncio.wait_for(loop.shutdown_asyncgens(), GUARD))
    assert stats().idle == stats().threads == 1
    request.cancel()
    loop.run_until_complete(asyncio.wait([request]))
    loop.close()
    assert_whole()


def test_call_of_a_request_as_its_loop_ends(green):
    """A call that a resting request makes just as its loop shuts down still runs."""
    green(MAX_THREADS=1)

    async def work():
        async with in_context(holds=True):
            await green_where()
            await until(lambda: [each[1] for each in stats().holders] == ["test, idle"])
            end = asyncio.create_task(asyncio.get_running_loop().shutdown_asyncgens())
            call = asyncio.create_task(green_where())  # it is in line as the end begins
            await asyncio.wait_for(end, GUARD)
            return await call

    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(work()) == threading.get_ident()
    loop.close()
    assert_whole()


@pytest.mark.parametrize("closes", [True, False])
def test_thread_that_ends_with_a_call_that_waits_for_the_loop(green, closes):
    """What only the loop could do is not waited for: the thread ends, and its worker is lost."""
    result = run_python(
        f"""
        import asyncio, os, threading
        import django
        from asgiref.sync import async_to_sync
        from django.conf import settings

        database = {{"ENGINE": "django.db.backends.postgresql"}}
        settings.configure(DATABASES={{"default": database}}, ORMBRIDGE={{"GREEN": True}})
        django.setup()
        from ormbridge import database_sync_to_async

        waits = threading.Event()

        async def below():
            waits.set()
            await asyncio.sleep(3600)

        @database_sync_to_async(green=True)
        def function():
            async_to_sync(below)()

        async def begin():
            asyncio.create_task(function())
            while not waits.is_set():
                await asyncio.sleep(0.001)

        def run():
            loop = asyncio.new_event_loop()
            loop.run_until_complete(begin())
            if {closes}:
                loop.close()

        thread = threading.Thread(target=run)
        thread.start()
        thread.join({GUARD})
        print(thread.is_alive(), flush=True)
        os._exit(0)
        """
    )
    assert result.stdout == "False\n", result.stderr
