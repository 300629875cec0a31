"""The bound, the order of the line, retirement, time-outs, and what the pool says of itself."""

import asyncio
import functools
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from unittest import mock

import pytest
from django.contrib.auth.models import User

from ormbridge.core import process
from ormbridge.core.bridge import database_sync_to_async
from ormbridge.core.call import _expire
from ormbridge.core.errors import BridgeError, PoolClosed, PoolTimeout
from ormbridge.core.pool import Pool
from ormbridge.core.process import default_pool, stats
from ormbridge.core.settings import Settings
from ormbridge.core.worker import Worker
from tests.core.gate import GUARD, Gate, block_until
from tests.core.support import until


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


async def test_workers_start_in_no_context(monkeypatch):
    """Tools that hand the context of whoever starts a thread on to it find none for a worker."""
    variable = ContextVar("variable", default=None)
    variable.set("of the first request")
    found = []
    start = threading.Thread.start

    def start_as_tools_do(self):  # Sentry's and OpenTelemetry's, for threads
        found.append(variable.get())
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_as_tools_do)
    await database_sync_to_async(len)("")
    assert set(found) == {None}


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


def test_worker_whose_leases_ran_elsewhere_is_not_idle():
    """What ran on an event loop's thread did not wake the worker's own, and counts all the same."""
    pool = Pool(Settings(max_threads=1, timeout=GUARD, max_idle=GUARD, reset=None))
    worker = Worker(pool, 1)
    pool.workers.add(worker)
    worker.lease = mock.Mock(calls=1, loop=None, asked=0.0)
    assert pool.give_back(worker) is None
    with mock.patch.object(worker, "_is_woken", side_effect=[False, True]):
        worker._wait()
    assert list(pool._idle) == [worker]
    worker.since -= GUARD
    with mock.patch.object(worker, "_is_woken", return_value=False):
        assert worker._wait() is None
    assert list(pool._idle) == []


def test_worker_that_is_given_back_as_its_pool_closes():
    """At exit a lease is told once, though its worker may be done with it at any moment."""
    pool = Pool(Settings(max_threads=1, timeout=GUARD, max_idle=GUARD, reset=None))
    lease = mock.Mock(calls=1, loop=None)
    worker = mock.Mock(lease=lease)
    pool.workers.add(worker)
    # Who looks a second time, without the lock, finds nothing.
    pool._lock = mock.MagicMock()
    pool._lock.__exit__.side_effect = lambda *error: setattr(worker, "lease", None)
    assert pool.close(refuse=True) == [worker]
    lease.dismiss.assert_called_once()


def test_retiring_worker_serves_who_came_meanwhile():
    """A worker that is about to leave stays for a call that came while it closed connections."""
    pool = Pool(Settings(max_threads=1, timeout=GUARD, max_idle=GUARD, reset=None))
    worker, lease = Worker(pool, 1), mock.Mock(calls=1, loop=None)
    pool.workers.add(worker)
    pool._idle[worker] = None
    assert pool.retire(worker)
    assert pool.take(lease) is False  # the bound still counts the worker
    assert pool.leave(worker) is lease
    assert pool.give_back(worker) is None
    assert pool.retire(worker)
    assert pool.leave(worker) is None
    assert pool.stats().threads == 0


def test_worker_does_not_retire_with_a_lease_on_its_way():
    """A worker whose idle time ends as a lease is handed to it does not retire."""
    pool = Pool(Settings(max_threads=1, timeout=GUARD, max_idle=GUARD, reset=None))
    worker = Worker(pool, 1)
    pool.workers.add(worker)
    pool._idle[worker] = None
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
    assert "ormbridge-worker-1 by tests.core.gate.Gate.__call__ for " in message
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


#: Threads that are refused, where it is all of a test's.
MANY = 1_000_000
NO_THREAD = r"^no thread could be started \(can't start new thread\).* 0 of 3 workers exist\."


async def test_no_thread_left_is_an_error_and_nothing_is_lost(refuse, pool_settings):
    """If the system refuses the first thread, the call fails and never runs; later ones work."""
    pool_settings(MAX_THREADS=3)
    refuse()
    ran = []
    with pytest.raises(PoolTimeout, match=NO_THREAD) as caught:
        await database_sync_to_async(ran.append)("refused")
    assert "raise it (ulimit -u, the pids of the container), or lower" in str(caught.value)
    assert repr(caught.value.__cause__) == 'RuntimeError("can\'t start new thread")'
    now = stats()
    assert (now.threads, now.waiting, now.timeouts) == (0, 0, 1)
    await database_sync_to_async(ran.append)("then")
    assert ran == ["then"]


async def test_no_memory_for_a_thread_is_the_same(monkeypatch, pool_settings):
    """What else the start of a thread may fail with is the same error, with its cause."""
    pool_settings(MAX_THREADS=3)
    with (
        mock.patch.object(Worker, "start", side_effect=MemoryError),
        pytest.raises(PoolTimeout, match="no thread could be started") as caught,
    ):
        await database_sync_to_async(len)("")
    assert type(caught.value.__cause__) is MemoryError
    assert stats().threads == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("refused", [1, 2, 7])
async def test_no_thread_left_for_calls_that_are_gathered(threads, refused, refuse, pool_settings):
    """Each of the calls made at one time ran and gets its result, or an error of its own."""
    pool_settings(MAX_THREADS=threads)
    refuse(refused)
    ran = []
    calls = [database_sync_to_async(ran.append)(number) for number in range(6)]
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), GUARD)
    errors = [outcome for outcome in outcomes if outcome is not None]
    assert [type(error) for error in errors] == [PoolTimeout] * min(refused, 6)
    assert len(set(map(id, errors))) == len(errors)
    assert sorted(ran) == list(range(min(refused, 6), 6))


async def test_no_thread_left_makes_do_with_those_that_run(gate, refuse, pool_settings):
    """If the system refuses another thread, the call waits for one of those that run."""
    pool_settings(MAX_THREADS=2)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    refuse(MANY)
    waiting = asyncio.create_task(database_sync_to_async(len)("abc"))
    await asyncio.sleep(0)
    assert stats().waiting == 1
    gate.open.set()
    assert await waiting == 3
    await running


async def test_no_thread_left_takes_one_that_became_free(gate, refuse, pool_settings):
    """If a worker became free while the system refused another thread, it takes the call."""
    pool_settings(MAX_THREADS=2)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()

    def end_the_running_call():
        gate.open.set()
        block_until(lambda: default_pool()._idle)

    refuse(first=end_the_running_call)
    assert await asyncio.wait_for(database_sync_to_async(len)("abc"), GUARD) == 3
    await running


async def test_call_without_a_thread_still_times_out(gate, refuse, pool_settings):
    """A call that goes back in line because it got no thread waits no longer than TIMEOUT."""
    pool_settings(MAX_THREADS=2, TIMEOUT=0.01)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    refuse(MANY)
    with pytest.raises(PoolTimeout, match="1 of 2 leased"):
        await asyncio.wait_for(database_sync_to_async(len)(""), GUARD)
    gate.open.set()
    await running


async def test_threads_that_can_be_had_again(gate, refuse, pool_settings):
    """Once threads can be had again, one is started for each that waits, without another call."""
    pool_settings(MAX_THREADS=4)
    calls = [asyncio.create_task(database_sync_to_async(gate)())]
    await gate.entered()
    refuse(MANY)
    calls += [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(2)]
    await asyncio.sleep(0)
    assert stats().waiting == 2
    refuse(0)
    await gate.entered(2)
    assert (stats().waiting, stats().threads) == (0, 3)
    gate.open.set()
    await asyncio.gather(*calls)


async def test_thread_that_is_refused_again(gate, refuse, pool_settings):
    """As long as threads are refused, all wait, and the worker that there is serves each."""
    pool_settings(MAX_THREADS=3)
    calls = [asyncio.create_task(database_sync_to_async(gate)())]
    await gate.entered()
    refused, order = asyncio.Event(), []
    loop = asyncio.get_running_loop()
    refuse(MANY, first=lambda: loop.call_soon_threadsafe(refused.set))
    for number in range(2):
        calls.append(asyncio.create_task(database_sync_to_async(order.append)(number)))
        await asyncio.sleep(0)
        refused.clear()
        await asyncio.wait_for(refused.wait(), GUARD)
    assert stats().waiting == 2
    gate.open.set()
    await asyncio.wait_for(asyncio.gather(*calls), GUARD)
    assert sorted(order) == [0, 1]  # while the system is asked for a thread, the next one may go


async def test_retiring_worker_serves_who_got_no_thread(refuse, pool_settings):
    """A call that gets no thread while the only worker retires is served by that worker."""
    pool = Pool(Settings(max_threads=2, timeout=GUARD, max_idle=GUARD, reset=None))
    worker, lease = Worker(pool, 1), mock.Mock(calls=1, loop=None)
    pool.workers.add(worker)
    pool._idle[worker] = None
    assert pool.retire(worker)
    refuse()
    assert pool.take(lease) is False
    assert pool.leave(worker) is lease
    lease.refuse.assert_not_called()


def test_wait_of_who_got_no_thread_is_counted_once(refuse, monkeypatch):
    """Who goes back in line, because the system refuses a thread, has gone on waiting."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    pool = Pool(Settings(max_threads=2, timeout=GUARD, max_idle=GUARD, reset=None))
    busy, lease = Worker(pool, 1), mock.Mock(calls=1, loop=None, asked=100.0)
    pool.workers.add(busy)
    busy.lease, busy.since = lease, now
    refuse(2)
    waiting = mock.Mock(calls=1, loop=None)
    pool.take(waiting)
    now = 110.0
    pool._begin_next()
    assert (pool.stats().waiting, pool.stats().wait_seconds) == (1, 0.0)
    now = 120.0
    assert pool.give_back(busy) is waiting
    assert pool.stats().wait_seconds == 20.0
    assert pool.give_back(busy) is None
    assert pool.stats().wait_seconds == 20.0


async def test_no_thread_left_for_one_that_does_not_wait(gate, refuse, pool_settings):
    """A call that may not wait for a worker, and gets no thread, is in no line and never runs."""
    pool_settings(MAX_THREADS=2)
    ran = []

    def on_a_worker():
        refuse()
        with pytest.raises(PoolTimeout, match="no other worker is free"):
            asyncio.run(database_sync_to_async(ran.append)("refused"))
        return stats().waiting

    assert await database_sync_to_async(on_a_worker)() == 0
    await database_sync_to_async(len)("")
    assert ran == []


def in_threads(*functions):
    """Run each function in a thread of its own, and return what they return, in order."""
    with ThreadPoolExecutor(len(functions)) as executor:
        futures = [executor.submit(function) for function in functions]
        return [future.result(GUARD) for future in futures]


def outcome_of(function, *args):
    """Return what a call of *function* from a loop of its own returns or raises."""
    try:
        return asyncio.run(database_sync_to_async(function)(*args))
    except BridgeError as error:
        return error


def test_no_thread_left_while_another_loop_waits(refuse, pool_settings):
    """If the only worker cannot start, calls of other loops that wait for it are refused too."""
    pool_settings(MAX_THREADS=1)
    ran = []
    starting = threading.Event()

    def wait_for_the_others():
        starting.set()
        block_until(lambda: stats().waiting == 3)

    def waiting(number):
        starting.wait(GUARD)
        return outcome_of(ran.append, number)

    refuse(first=wait_for_the_others)
    others = [functools.partial(waiting, number) for number in range(3)]
    errors = in_threads(functools.partial(outcome_of, ran.append, "first"), *others)
    assert [type(error) for error in errors] == [PoolTimeout] * 4
    assert len(set(map(id, errors))) == 4
    assert {str(error)[:27] for error in errors} == {"no thread could be started "}
    assert ran == []
    assert stats().waiting == stats().threads == 0
    assert outcome_of(len, "abc") == 3


@pytest.mark.parametrize("second_starts", [True, False])
def test_two_threads_are_started_at_one_time(second_starts, monkeypatch, pool_settings):
    """Who gets no thread while another loop starts one waits for that, and shares its fate."""
    pool_settings(MAX_THREADS=2)
    both = threading.Barrier(2, timeout=GUARD)
    original = Worker.start
    third = threading.Event()  # for the first one, which is back in line

    def start(worker):
        number = worker.name.rpartition("-")[2]
        if number in "12":
            both.wait()
        if number == "2":
            block_until(lambda: stats().waiting or third.is_set())
        elif number != "1":
            third.set()
        if number == "1" or not second_starts:
            raise RuntimeError("can't start new thread")
        original(worker)

    monkeypatch.setattr(Worker, "start", start)
    outcomes = in_threads(*[functools.partial(outcome_of, len, "abc")] * 2)
    if second_starts:
        assert outcomes == [3, 3]
    else:
        assert [type(outcome) for outcome in outcomes] == [PoolTimeout] * 2
    assert stats().waiting == 0


def test_closing_does_not_wait_for_a_thread_that_has_not_started():
    """A pool can be closed while a worker is about to start on another thread."""
    pool = Pool(Settings(max_threads=1, timeout=GUARD, max_idle=GUARD, reset=None))
    pool.workers.add(Worker(pool, 1))
    process.end(pool)


def test_each_that_is_refused_at_exit_has_an_error_of_its_own():
    """Calls that wait as the pool closes do not share an error, and so no traceback."""
    pool = Pool(Settings(max_threads=1, timeout=GUARD, max_idle=GUARD, reset=None))
    leases = [mock.Mock(), mock.Mock()]
    pool._waiting.update(dict.fromkeys(leases))
    process.end(pool)
    first, second = [lease.refuse.call_args.args[0] for lease in leases]
    assert type(first) is type(second) is PoolClosed
    assert first is not second


async def test_one_look_at_the_pool_for_all_that_time_out_at_once(gate, pool_settings):
    """The holders are looked up once for all that time out together; each has its own error."""
    pool_settings(MAX_THREADS=1)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    calls = [asyncio.create_task(database_sync_to_async(len)("")) for _ in range(5)]
    await asyncio.sleep(0)
    with mock.patch.object(Pool, "stats", autospec=True, side_effect=Pool.stats) as looked:
        _expire(list(default_pool()._waiting))
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert looked.call_count == 1
    assert len(set(map(id, errors))) == 5
    assert {"1 of 1 leased, 0 more calls waiting" in str(error) for error in errors} == {True}
    gate.open.set()
    await running
    assert stats().timeouts == 5


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
