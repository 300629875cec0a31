"""Event loops that green functions wait on: several, closed, left, moved, nested, other kinds."""

import asyncio
import gc
import importlib
import os
import select
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import OperationalError, connection
from greenlet import getcurrent

from ormbridge import BridgeMiddleware, atomic, database_sync_to_async, pinned, stats
from ormbridge.core import process
from ormbridge.core.call import Call
from ormbridge.core.connections import ThreadConnections
from ormbridge.leases.lease import Lease
from tests.core.gate import GUARD, Gate, block_until
from tests.core.support import run_python, until
from tests.support.canceller import Outside, in_context

pytestmark = pytest.mark.django_db(transaction=True)


def where():
    """Use the database; return the thread."""
    User.objects.exists()
    return threading.get_ident()


green_where = database_sync_to_async(where, green=True)


def ask_for_pid():
    """Return the number of the backend, by the word of the server."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]


def in_thread(function, *args):
    """Call *function* on a thread of its own; return what it returns."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function, *args).result(GUARD)


def assert_whole():
    """See that every worker is free, and that all of them can be had."""
    assert stats().idle == stats().threads
    assert stats().waiting == 0
    assert asyncio.run(green_where()) == threading.get_ident()


def answer_all(held):
    """Let all go on that *held* holds; return when each has its answer, and the loop can see it."""
    raws = [each.connections.opened[0].connection for each in process.default_pool().workers]
    held.let_go()
    block_until(lambda: select.select(raws, [], [], 0)[0] == raws)


def use_up_the_slice():
    """Be at work for so long that no other greenlet goes on in this turn of the loop."""
    end = time.monotonic() + 2 * importlib.import_module("ormbridge.green.answers").SLICE
    while time.monotonic() < end:
        pass


@pytest.fixture
def held(transactional_db):
    """Hold the tables, so that green functions wait for the server."""
    outside = Outside()
    yield outside
    outside.close()


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


async def test_woken_for_another_wait(green, held):
    """What waits for its server, or for a thread, goes on waiting for that until it has come."""
    green(MAX_THREADS=1)
    greenlets = importlib.import_module("ormbridge.green.runner").greenlets_of

    async def wake():
        """Wake the one that runs, as if it had waited for something before this."""
        (runner,) = greenlets(asyncio.get_running_loop()).running
        turns = runner.turns
        runner.wake()
        await until(lambda: runner.turns > turns)

    async with in_context(holds=True):
        call = asyncio.create_task(green_where())
        await held.sees(1)
        await wake()
        held.let_go()
        assert await call == threading.get_ident()
        gate = Gate()
        call = asyncio.create_task(database_sync_to_async(gate)())
        await gate.entered()
        await wake()
        assert not call.done()
        gate.open.set()
        assert await call == "ormbridge-worker-1"
        assert await green_where() == threading.get_ident()


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


async def test_loop_turns_between_two_answers(green, held, monkeypatch):
    """Where many have their answer at one time, and each is long at work, the loop turns.

    It is told of each answer once, and not in each turn.
    """
    answers = importlib.import_module("ormbridge.green.answers")
    look, told, went_on = answers.Answers._look, [], []
    monkeypatch.setattr(answers.Answers, "_look", lambda *args: told.append(look(*args)))
    green(MAX_THREADS=3)

    async def call(name):
        def function():
            User.objects.exists()
            went_on.append(name)
            use_up_the_slice()

        await database_sync_to_async(function, green=True)()

    async def turn():
        while len([each for each in went_on if each != "turn"]) < 3:
            went_on.append("turn")
            await asyncio.sleep(0)

    calls = [asyncio.create_task(call(name)) for name in "abc"]
    await held.sees(3)
    answer_all(held)
    await asyncio.gather(turn(), *calls)
    order = "".join("-" if each == "turn" else each for each in went_on)
    assert sorted(order.replace("-", "")) == ["a", "b", "c"]
    assert not {"ab", "ac", "ba", "bc", "ca", "cb"} & {*map("".join, pairwise(order))}, order
    assert len(told) == 1


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


async def test_greenlets_are_used_again(green, monkeypatch):
    """Calls that follow one another have one greenlet, but for one that was interrupted."""
    green(MAX_THREADS=2)
    runner = importlib.import_module("ormbridge.green.runner")
    monkeypatch.setattr(runner.green, "idle", [])
    got_id = database_sync_to_async(lambda: id(getcurrent()), green=True)
    first = await got_id()
    assert {await got_id() for _ in range(3)} == {first}
    (idle,) = runner.green.idle
    with pytest.raises(KeyboardInterrupt):
        idle.throw(KeyboardInterrupt)
    assert await got_id() in {id(each) for each in runner.green.idle if each is not idle}


async def test_call_deep_in_the_stack(green):
    """It runs on a thread: a greenlet begins on top of its caller's stack, and would keep that."""
    green(MAX_THREADS=2)
    half = sys.getrecursionlimit() // 2

    def dive(depth):
        return threading.get_ident() if depth == 0 else dive(depth - 1)

    async def call(depth, bridge):
        return await (bridge(half) if depth == 0 else call(depth - 1, bridge))

    on_loop = database_sync_to_async(dive, green=True)
    assert await call(half, on_loop) != threading.get_ident()
    assert await call(0, on_loop) == threading.get_ident()
    async with in_context(holds=True):
        assert await call(half, on_loop) != threading.get_ident()
    assert await call(0, on_loop) == threading.get_ident()


@pytest.mark.parametrize("what", ["call", "block"])
async def test_endless_recursion(green, what):
    """It fails as on threads: what is called at the end of the stack loses no worker."""
    green(MAX_THREADS=2)
    await green_where()
    nothing = database_sync_to_async(int, green=True)

    async def call(depth):
        return await (nothing() if depth == 0 else call(depth - 1))

    async def block():
        async with atomic():
            await block()

    if what == "block":
        with pytest.raises(RecursionError):
            await block()
    else:
        for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit(), 3):
            with suppress(RecursionError):
                await call(depth)
    await until(lambda: stats().idle == stats().threads)
    assert await green_where() == threading.get_ident()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
async def test_fork_in_a_green_function():
    """The child of a green function goes on in that function, and never in the event loop."""
    own = threading.get_ident()

    def function():
        User.objects.exists()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                connection.connection = None  # it is the parent's
                process._pool = None
                User.objects.exists()
                os.write(writer, b"went on")
            finally:
                os._exit(0)
        os.close(writer)
        said = os.read(reader, 100)
        os.close(reader)
        os.waitpid(child, 0)
        User.objects.exists()
        return said, threading.get_ident()

    assert await database_sync_to_async(function, green=True)() == (b"went on", own)


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
