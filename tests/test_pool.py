"""The bound, the order of the line, retirement, time-outs, and what the pool says of itself."""

import asyncio
import functools
import re
import threading
from unittest import mock

import pytest
from django.contrib.auth.models import User

from ormbridge import PoolTimeout, database_sync_to_async, process, stats
from ormbridge.pool import Pool
from ormbridge.process import default_pool
from ormbridge.settings import Settings
from ormbridge.worker import Worker
from tests.gate import GUARD, Gate
from tests.test_call import until


def workers():
    return [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, Worker) and thread.pool is default_pool()
    ]


async def test_never_more_workers_than_the_bound(pool_settings):
    """However many calls wait, never more than MAX_THREADS run at one time."""
    pool_settings(MAX_THREADS=3)
    lock, running, most = threading.Lock(), 0, 0
    three = threading.Barrier(3, timeout=GUARD)

    def call():
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        three.wait()
        with lock:
            running -= 1

    await asyncio.gather(*[database_sync_to_async(call)() for _ in range(60)])
    assert most == 3
    assert len(workers()) == stats().threads == 3
    assert stats().calls == 60


async def test_one_thread_where_the_bound_is_one(pool_settings):
    """With MAX_THREADS = 1 all calls run on one thread, one after the other."""
    pool_settings(MAX_THREADS=1)
    names = await asyncio.gather(
        *[database_sync_to_async(threading.current_thread)() for _ in range(20)]
    )
    assert len(set(names)) == 1


async def test_asgi_threads_is_the_bound(monkeypatch, pool_settings):
    """ASGI_THREADS sets the bound, and wins over MAX_THREADS."""
    monkeypatch.setenv("ASGI_THREADS", "2")
    pool_settings(MAX_THREADS=7)
    await asyncio.gather(*[database_sync_to_async(len)("") for _ in range(20)])
    assert stats().max_threads == 2
    assert stats().threads == 2


async def test_workers_start_lazily(pool_settings):
    """No worker exists before the first call, and calls one after the other share one."""
    pool_settings(MAX_THREADS=5)
    assert stats().threads == 0
    for _ in range(10):
        await database_sync_to_async(len)("")
    assert stats().threads == 1


async def test_first_in_first_out(gate, pool_settings):
    """Waiting calls run in the order in which they came."""
    pool_settings(MAX_THREADS=1)
    order = []
    calls = [asyncio.create_task(database_sync_to_async(gate)())]
    await gate.entered()
    calls += [asyncio.create_task(database_sync_to_async(order.append)(n)) for n in range(20)]
    await asyncio.sleep(0)
    assert stats().waiting == 20
    gate.open.set()
    await asyncio.gather(*calls)
    assert order == list(range(20))


async def test_worker_used_last_is_taken_first(pool_settings):
    """Of several free workers the one used last is taken, so that few connections stay warm."""
    pool_settings(MAX_THREADS=3)
    gates = [Gate(), Gate(), Gate()]
    calls = []
    for gate in gates:
        calls.append(asyncio.create_task(database_sync_to_async(gate)()))
        await gate.entered()
    last = None
    for number in (0, 2, 1):
        gates[number].open.set()
        last = await calls[number]
    for _ in range(10):
        name = await database_sync_to_async(lambda: threading.current_thread().name)()
        assert name == last


async def test_worker_is_free_before_its_caller_goes_on(pool_settings):
    """Whoever awaits one call after the other always finds the same worker free."""
    pool_settings(MAX_THREADS=10)
    names = {await database_sync_to_async(threading.current_thread)() for _ in range(300)}
    assert len(names) == 1


async def test_idle_worker_retires_after_max_idle(pool_settings):
    """A worker idle for longer than MAX_IDLE ends; the next call starts a new one."""
    pool_settings(MAX_IDLE=0.01)
    before = await database_sync_to_async(threading.current_thread)()
    await asyncio.to_thread(before.join, GUARD)
    assert not before.is_alive()
    assert stats().threads == 0
    after = await database_sync_to_async(threading.current_thread)()
    assert after is not before


async def test_calls_and_retirements_do_not_lose_each_other(pool_settings):
    """Calls that come as their worker retires are all served, within the bound."""
    pool_settings(MAX_THREADS=1, MAX_IDLE=1e-6, TIMEOUT=GUARD)
    for number in range(300):
        assert await database_sync_to_async(str)(number) == str(number)
        assert stats().threads <= 1  # a thread that has left the pool may still be ending


def test_retiring_worker_serves_who_came_meanwhile():
    """A worker that is about to leave stays for a call that came while it closed connections."""
    pool = Pool(Settings(max_threads=1, timeout=GUARD, max_idle=GUARD, reset=None))
    worker, lease = Worker(pool, 1), mock.Mock(calls=1)
    pool._workers.add(worker)
    pool._idle.append(worker)
    assert pool.retire(worker)
    assert pool.take(lease) is False  # the bound still counts the worker
    assert pool.leave(worker) is lease
    assert pool.give_back(worker, ran=True) is None
    assert pool.retire(worker)
    assert pool.leave(worker) is None
    assert pool.stats().threads == 0


def test_worker_does_not_retire_with_a_lease_on_its_way():
    """A worker whose idle time ends as a lease is handed to it does not retire."""
    pool = Pool(Settings(max_threads=1, timeout=GUARD, max_idle=GUARD, reset=None))
    worker = Worker(pool, 1)
    pool._workers.add(worker)
    pool._idle.append(worker)
    with mock.patch.object(Worker, "start"):
        assert pool.take(mock.Mock()) is True
    assert pool.retire(worker) is False


async def test_pool_timeout_names_holders_and_remedy(gate, pool_settings):
    """PoolTimeout says who holds the workers, for how long, and what to change."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.01)
    running = asyncio.create_task(database_sync_to_async(gate.__call__)())
    await gate.entered()
    with pytest.raises(PoolTimeout) as caught:
        await asyncio.wait_for(database_sync_to_async(len)(""), GUARD)
    message = str(caught.value)
    assert re.match(r"waited \d+\.\d s for a worker", message)
    assert "1 of 1 leased" in message
    assert "ormbridge-worker-1 by tests.gate.Gate.__call__ for " in message
    assert "raise ASGI_THREADS or settings.ORMBRIDGE['MAX_THREADS']" in message
    assert stats().timeouts == 1
    assert stats().waiting == 0
    gate.open.set()
    await running


async def test_pool_timeout_reads_no_queryset(gate, pool_settings):
    """Naming a holder that was given a queryset does not run the query on the event loop."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.01)
    holder = functools.partial(lambda users: gate(), User.objects.all())
    running = asyncio.create_task(database_sync_to_async(holder)())
    await gate.entered()
    with pytest.raises(PoolTimeout):
        await asyncio.wait_for(database_sync_to_async(len)(""), GUARD)
    gate.open.set()
    await running


async def test_call_that_timed_out_never_runs(gate, pool_settings):
    """A call that got PoolTimeout never runs later, and calls after it still get their turn."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.01)
    ran = []
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    timed_out = await asyncio.gather(
        *[database_sync_to_async(ran.append)(n) for n in range(5)], return_exceptions=True
    )
    assert [type(outcome) for outcome in timed_out] == [PoolTimeout] * 5
    gate.open.set()
    await running
    assert await database_sync_to_async(len)("abc") == 3
    assert ran == []


async def test_each_waiting_call_has_its_own_deadline(gate, pool_settings):
    """A call that began to wait later times out too, although the loop has one timer for all."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.02)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    first = asyncio.create_task(database_sync_to_async(len)(""))
    await asyncio.sleep(0.01)  # so that the second is not yet due when the timer rings
    second = asyncio.create_task(database_sync_to_async(len)(""))
    outcomes = await asyncio.wait_for(asyncio.gather(first, second, return_exceptions=True), GUARD)
    assert [type(outcome) for outcome in outcomes] == [PoolTimeout, PoolTimeout]
    gate.open.set()
    await running


async def test_shortage_names_at_most_five(pool_settings):
    """The message of PoolTimeout names the five that hold a worker longest, and counts the rest."""
    pool_settings(MAX_THREADS=7, TIMEOUT=0.01)
    gate = Gate()
    running = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(7)]
    await gate.entered(7)
    with pytest.raises(PoolTimeout, match=r"7 of 7 leased.* and 2 more\. "):
        await asyncio.wait_for(database_sync_to_async(len)(""), GUARD)
    gate.open.set()
    await asyncio.gather(*running)


async def test_stats_tell_waiting_from_running(gate, pool_settings):
    """stats() counts calls, those that waited, and keeps waiting time apart from running time."""
    pool_settings(MAX_THREADS=1)
    calls = [asyncio.create_task(database_sync_to_async(gate)())]
    await gate.entered()
    calls.append(asyncio.create_task(database_sync_to_async(len)("")))
    await asyncio.sleep(0)
    now = stats()
    assert (now.max_threads, now.threads, now.idle, now.waiting) == (1, 1, 0, 1)
    ((thread, _, seconds),) = now.holders
    assert thread == "ormbridge-worker-1"
    assert seconds >= 0
    gate.open.set()
    await asyncio.gather(*calls)
    now = stats()
    assert (now.calls, now.queued, now.waiting, now.idle) == (2, 1, 0, 1)
    assert 0 < now.wait_seconds
    assert 0 < now.run_seconds
    assert now.holders == ()


async def test_no_thread_left_is_an_error_and_nothing_is_lost(pool_settings):
    """If the system refuses the first thread, the call fails with its error; later ones work."""
    pool_settings(MAX_THREADS=2)
    with (
        mock.patch.object(Worker, "start", side_effect=RuntimeError("can't start new thread")),
        pytest.raises(RuntimeError, match="can't start new thread"),
    ):
        await database_sync_to_async(len)("")
    assert stats().threads == 0
    assert await database_sync_to_async(len)("abc") == 3


async def test_no_thread_left_makes_do_with_those_that_run(gate, pool_settings):
    """If the system refuses another thread, the call waits for one of those that run."""
    pool_settings(MAX_THREADS=2)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    with mock.patch.object(Worker, "start", side_effect=RuntimeError("can't start new thread")):
        waiting = asyncio.create_task(database_sync_to_async(len)("abc"))
        await asyncio.sleep(0)
    assert stats().waiting == 1
    gate.open.set()
    assert await waiting == 3
    await running


async def test_no_thread_left_takes_one_that_became_free(gate, pool_settings):
    """If a worker became free while the system refused another thread, it takes the call."""
    pool_settings(MAX_THREADS=2)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()

    def refuse(worker):
        gate.open.set()
        while not worker.pool._idle:  # the running call ends now
            threading.Event().wait(0.001)
        raise RuntimeError("can't start new thread")

    with mock.patch.object(Worker, "start", refuse):
        waiting = asyncio.create_task(database_sync_to_async(len)("abc"))
        assert await asyncio.wait_for(waiting, GUARD) == 3
    await running


async def test_new_settings_make_a_new_pool(gate, pool_settings):
    """override_settings(ORMBRIDGE=…) gives the next call a new pool; the old one's calls finish."""
    pool_settings(MAX_THREADS=1)
    old = default_pool()
    calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(2)]
    await gate.entered()
    pool_settings(MAX_THREADS=2)
    assert process._pool is None
    assert stats().max_threads == 2
    gate.open.set()
    await asyncio.wait_for(asyncio.gather(*calls), GUARD)
    await until(lambda: old.stats().threads == 0)


def test_signal_handler_may_ask_for_stats():
    """stats() answers also in a signal handler that interrupts a thread inside the pool."""
    pool = Pool(Settings(max_threads=1, timeout=GUARD, max_idle=GUARD, reset=None))
    with pool._lock:
        assert pool.stats().threads == 0


async def test_line_is_long_when_it_keeps_every_worker_busy(gate, pool_settings):
    """The line is long when at least as many calls wait as there may be workers."""
    pool_settings(MAX_THREADS=2)
    calls = []
    seen = []
    for _ in range(5):
        calls.append(asyncio.create_task(database_sync_to_async(gate)()))
        await asyncio.sleep(0)
        seen.append(default_pool().has_long_line())
    gate.open.set()
    await asyncio.gather(*calls)
    assert seen == [False, False, False, True, True]
    assert stats().waiting == 0
