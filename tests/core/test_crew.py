"""The crew: how many workers run while the line is long, found by trying."""

import asyncio
from unittest import mock

import pytest

from ormbridge.core import mailbox
from ormbridge.core.bridge import database_sync_to_async
from ormbridge.core.call import _expire
from ormbridge.core.crew import WINDOW, Crew
from ormbridge.core.pool import Pool
from ormbridge.core.process import default_pool
from ormbridge.core.settings import Settings
from ormbridge.core.worker import Worker
from tests.core.gate import GUARD, Gate


class Simulation:
    """Calls that finish at a speed that depends on how many workers run."""

    def __init__(self, most, speed):
        self.crew = Crew(most)
        self.speed = speed
        self.now = 1.0
        self.sizes = []

    def run(self, windows, long_line=True):
        """Let *windows* times WINDOW calls finish; note the size during each."""
        for _ in range(windows):
            for _ in range(WINDOW):
                self.now += 1 / self.speed(self.crew.size)
                self.crew.call_done(self.now, long_line)
            self.sizes.append(self.crew.size)
        return self.sizes


def test_starts_with_all_hands():
    """Before anything is known, every worker may run."""
    assert Crew(10).size == 10


def test_shrinks_where_fewer_workers_are_faster():
    """Where fewer workers get more done, the crew shrinks to them and stays about there."""
    simulation = Simulation(10, lambda size: 4000 - 200 * abs(size - 4))
    simulation.run(100)
    assert set(simulation.sizes[50:]) <= {2, 3, 4, 5}
    assert simulation.sizes[50:].count(2) < 10


def test_stays_where_every_worker_counts():
    """Where speed goes with the number of workers, all run but for rare trials."""
    simulation = Simulation(10, lambda size: 160 * size)
    sizes = simulation.run(200)
    assert sizes.count(10) > 180


def test_hopeless_trial_ends_early():
    """A trial that is clearly slower ends after a quarter of its calls."""
    simulation = Simulation(10, lambda size: 160 * size)
    slow = 0
    for _ in range(100 * WINDOW):
        slow += simulation.crew.size < 10
        simulation.now += 1 / simulation.speed(simulation.crew.size)
        simulation.crew.call_done(simulation.now, long_line=True)
    assert 0 < slow <= 8 * WINDOW // 4


def test_grows_again_when_that_becomes_faster():
    """A crew that shrank grows when more workers become the faster ones."""
    simulation = Simulation(10, lambda size: 4000 - 100 * size)
    simulation.run(50)
    assert simulation.crew.size <= 2
    simulation.speed = lambda size: 160 * size
    simulation.run(100)
    assert set(simulation.sizes[-10:]) <= {5, 10}


def test_short_line_teaches_nothing():
    """Calls that finish while the line is short end a trial and change nothing."""
    simulation = Simulation(10, lambda size: 4000 - 100 * size)
    simulation.run(50, long_line=False)
    assert set(simulation.sizes) == {10}


def test_all_hands_undoes_what_was_found():
    """all_hands() lets every worker run, and the search starts anew."""
    simulation = Simulation(10, lambda size: 4000 - 100 * size)
    simulation.run(50)
    simulation.crew.all_hands()
    assert simulation.crew.size == 10
    simulation.run(100)
    assert simulation.crew.size <= 2


@pytest.mark.parametrize("most", [1, 2, 3, 80])
@pytest.mark.parametrize("slope", [-1, 0, 1])
def test_never_below_one_or_above_the_bound(most, slope):
    """Whatever is faster, the crew has at least one worker and at most all."""
    simulation = Simulation(most, lambda size: 1000 + slope * size)
    assert {1, most} | set(simulation.run(200)) <= set(range(1, most + 1))


async def busy_pool(pool_settings, waiting):
    """Have two workers run a gate each, with a crew of one and *waiting* calls at a third gate."""
    pool_settings(MAX_THREADS=2)
    gates = [Gate(), Gate(), Gate()]
    calls = []
    for gate in gates[:2]:
        calls.append(asyncio.create_task(database_sync_to_async(gate)()))
        await gate.entered()
    calls += [asyncio.create_task(database_sync_to_async(gates[2])()) for _ in range(waiting)]
    await asyncio.sleep(0)
    crew = default_pool()._crew
    crew.size = crew._kept = 1
    return gates, calls


async def test_workers_beyond_the_crew_rest_while_the_line_is_long(pool_settings, monkeypatch):
    """While the line is long, a worker beyond the crew rests; the others serve the line."""
    monkeypatch.setattr(mailbox, "HOLD", GUARD)
    gates, calls = await busy_pool(pool_settings, waiting=3)
    gates[0].open.set()
    await calls[0]
    assert len(default_pool()._idle) == 1
    assert default_pool().stats().waiting == 3
    for gate in gates:
        gate.open.set()
    await asyncio.wait_for(asyncio.gather(*calls), GUARD)


async def test_all_work_when_the_line_is_short(pool_settings, monkeypatch):
    """As soon as the line is short, the workers that rested serve it too."""
    monkeypatch.setattr(mailbox, "HOLD", GUARD)
    gates, calls = await busy_pool(pool_settings, waiting=2)
    gates[0].open.set()
    await calls[0]
    gates[1].open.set()
    await gates[2].entered(2)
    gates[2].open.set()
    await asyncio.wait_for(asyncio.gather(*calls), GUARD)


async def test_all_work_when_nothing_finishes(pool_settings):
    """When no call finishes for a moment, the workers that rested serve the line."""
    gates, calls = await busy_pool(pool_settings, waiting=3)
    gates[0].open.set()
    await gates[2].entered()  # although the second gate is closed
    assert not gates[1].open.is_set()
    for gate in gates:
        gate.open.set()
    await asyncio.wait_for(asyncio.gather(*calls), GUARD)


async def test_closed_pool_has_all_hands(pool_settings):
    """A pool that was replaced serves its line with every worker, and its threads end."""
    gates, calls = await busy_pool(pool_settings, waiting=3)
    old = default_pool()
    pool_settings(MAX_THREADS=3)
    for gate in gates:
        gate.open.set()
    await asyncio.wait_for(asyncio.gather(*calls), GUARD)
    for worker in list(old._workers):
        await asyncio.to_thread(worker.join, GUARD)
    assert old.stats().threads == 0


async def test_small_crew_does_not_keep_calls_from_free_places(pool_settings, monkeypatch):
    """Calls that find free places start at once, however small the crew became before."""
    monkeypatch.setattr(mailbox, "HOLD", GUARD)
    pool_settings(MAX_THREADS=3)
    crew = default_pool()._crew
    crew.size = crew._kept = 1
    gate = Gate()
    calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(3)]
    await gate.entered(3)
    gate.open.set()
    await asyncio.gather(*calls)


async def test_cancellation_that_makes_the_line_short_rouses_all(pool_settings, monkeypatch):
    """When cancelled calls leave a short line, the workers that rested serve it."""
    monkeypatch.setattr(mailbox, "HOLD", GUARD)
    gates, calls = await busy_pool(pool_settings, waiting=3)
    gates[0].open.set()
    await calls[0]
    assert len(default_pool()._idle) == 1
    for call in calls[3:]:
        call.cancel()
    await gates[2].entered()
    assert not gates[1].open.is_set()
    for gate in gates:
        gate.open.set()
    await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), GUARD)


async def test_time_outs_that_make_the_line_short_rouse_all(pool_settings, monkeypatch):
    """When overdue calls leave a short line, the workers that rested serve it."""
    monkeypatch.setattr(mailbox, "HOLD", GUARD)
    gates, calls = await busy_pool(pool_settings, waiting=3)
    gates[0].open.set()
    await calls[0]
    _expire(list(default_pool()._waiting)[:2])
    await gates[2].entered()
    for gate in gates:
        gate.open.set()
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), GUARD)
    assert [type(outcome).__name__ for outcome in outcomes[2:4]] == ["PoolTimeout"] * 2


def test_worker_without_an_outcome_never_rests():
    """A worker whose call was cancelled before it began goes on with the line, beyond the crew."""
    pool = Pool(Settings(max_threads=1, timeout=GUARD, max_idle=GUARD, reset=None))
    workers = [Worker(pool, number) for number in (1, 2)]
    pool._workers.update(workers)
    leases = [mock.Mock(asked=0.0) for _ in range(3)]
    pool._waiting.update(dict.fromkeys(leases))
    pool._crew.size = 1
    assert pool.give_back(workers[0], ran=False) is leases[0]
    assert pool.give_back(workers[1], ran=True) is None


def test_closed_loop_does_not_leave_the_pool_resting():
    """Where the loop of an outcome is closed, the pool is told at once that nobody will look."""
    loop = asyncio.new_event_loop()
    closed = mailbox.Mailbox(loop)
    loop.close()
    told = []
    closed.post(mock.Mock(), stalled=lambda: told.append("stalled"))
    assert told == ["stalled"]


def test_no_crew_while_a_worker_is_held():
    """While a lease keeps its worker between calls, all others may run, however long the line."""
    pool = Pool(Settings(max_threads=2, timeout=GUARD, max_idle=GUARD, reset=None))
    leases = [mock.Mock(asked=0.0, calls=1) for _ in range(5)]
    workers = [Worker(pool, 1), Worker(pool, 2)]
    pool._workers.update(workers)
    pool._idle.extend(workers)
    pool._crew.size = pool._crew._kept = 1
    for lease in leases:
        pool._waiting[lease] = None
    holder = pool._next_worker(0.0)
    assert pool._next_worker(0.0) is None  # the crew is one
    pool.hold(holder)
    assert pool._idle == []
    assert [worker.lease for worker in reversed(workers)] == leases[:2]
    pool.give_back(holder, ran=True)
    assert pool._held == 0
    assert not holder.held
