"""Few hands first: how many workers run while calls wait, by what the interpreter has to do."""

import asyncio
from types import SimpleNamespace
from unittest import mock

import pytest

from ormbridge.core import hands as hands_module
from ormbridge.core import pool as pool_module
from ormbridge.core.bridge import database_sync_to_async
from ormbridge.core.hands import FEW, STALL
from ormbridge.core.mailbox import LOOK, Mailbox
from ormbridge.core.pool import Pool
from ormbridge.core.process import default_pool
from ormbridge.core.settings import Settings
from ormbridge.core.worker import Worker
from tests.core.gate import GUARD, Gate
from tests.core.support import until

MOST = 10


class Simulation:
    """A pool whose threads do not start, and a clock that the test turns."""

    def __init__(self, most=MOST):
        self.now = self.used = 100.0
        self.pool = Pool(Settings(max_threads=most, timeout=GUARD, max_idle=GUARD, reset=None))

    def take(self, calls=1):
        """Have *calls* more ask for a worker."""
        for _ in range(calls):
            self.pool.take(mock.Mock(calls=1, loop=None))

    def look(self, busy, served=1):
        """Let LOOK seconds pass, of which the processor was *busy* a part; *served* calls end."""
        self.now += LOOK / 2
        for worker in self.running()[:served]:
            self.pool.give_back(worker)
        self.now += LOOK / 2
        self.used += busy * LOOK
        return self.pool.look()

    def running(self):
        return sorted(
            (each for each in self.pool.workers if each.lease is not None),
            key=lambda worker: worker.name,
        )


@pytest.fixture
def simulation(monkeypatch):
    made = Simulation()
    clock = SimpleNamespace(monotonic=lambda: made.now, process_time=lambda: made.used)
    for module in (hands_module, pool_module):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(Worker, "start", lambda worker: worker.wake.acquire(blocking=False))
    return made


def test_few_begin(simulation):
    """Of many calls at one time FEW begin at once, on as many threads; the others wait."""
    simulation.take(FEW)
    assert simulation.pool.stats().waiting == 0
    simulation.take(20)
    now = simulation.pool.stats()
    assert (now.threads, now.waiting) == (FEW, 20)


def test_all_run_where_none_is_done(simulation):
    """Where no worker is done for a while, all run, however busy the processor is."""
    simulation.take(20)
    for _ in range(int(STALL / LOOK)):
        assert simulation.look(busy=1.0, served=0) is True
        assert len(simulation.running()) == FEW
    simulation.look(busy=1.0, served=0)
    assert len(simulation.running()) == MOST


def test_all_run_where_the_database_is_slow(simulation):
    """Where none is done since the last look, and the processor has little to do, all run."""
    simulation.take(20)
    simulation.look(busy=0.4, served=0)
    assert len(simulation.running()) == MOST


def test_one_more_runs_where_the_interpreter_has_time(simulation):
    """Where the processor has not been busy lately, one more worker runs at each look."""
    simulation.take(200)
    grown = []
    for _ in range(9):
        simulation.look(busy=0.5)
        grown.append(len(simulation.running()))
    assert grown == [FEW] * 3 + [4, 5, 6, 7, 8, 9]


def test_fewer_run_where_threads_are_in_each_others_way(simulation):
    """Where the processor is busy, one worker after the other rests, down to FEW."""
    simulation.take(200)
    simulation.look(busy=0.4, served=0)
    shrunk = []
    for _ in range(2 * MOST):
        simulation.look(busy=1.2, served=2)
        shrunk.append(len(simulation.running()))
    assert shrunk == sorted(shrunk, reverse=True)
    assert shrunk[-1] == FEW
    assert simulation.pool.stats().waiting > 0
    assert simulation.pool.stats().idle == MOST - FEW


def test_all_that_may_run_are_the_most(simulation):
    """However long the processor had time, once it is busy one worker after the other rests."""
    simulation.take(1000)
    for _ in range(10 * MOST):
        simulation.look(busy=0.5)
    assert len(simulation.running()) == MOST
    for _ in range(2 * MOST):
        simulation.look(busy=1.2, served=2)
    assert len(simulation.running()) == FEW


def test_looks_as_long_as_more_than_few_run(simulation):
    """Looking goes on when nobody waits any more; with FEW it ends, and the next line begins so."""
    simulation.take(MOST)
    assert simulation.look(busy=0.4, served=0) is True
    assert simulation.pool.stats().waiting == 0
    assert simulation.look(busy=0.4, served=MOST - FEW - 1) is True
    assert simulation.look(busy=0.4, served=1) is False
    simulation.take(2)
    assert len(simulation.running()) == FEW


def test_never_above_the_bound(simulation):
    """However idle the processor is, there are no more workers than the bound."""
    simulation.pool = Simulation(most=2).pool
    simulation.take(90)
    simulation.look(busy=0.0, served=0)
    for _ in range(9):
        simulation.look(busy=0.5)
    assert len(simulation.running()) == 2
    assert simulation.pool.stats().threads == 2


def test_no_line_teaches_nothing(simulation):
    """The time when nobody waited does not count: a line that begins is measured from then on."""
    simulation.take(FEW)
    simulation.now += 1000
    simulation.take(20)
    simulation.look(busy=1.0)
    assert len(simulation.running()) == FEW


def test_second_loop_looks_no_more_often(simulation):
    """A look right after another one, of another loop, changes nothing."""
    simulation.take(40)
    for _ in range(4):
        simulation.look(busy=0.5)
        simulation.now += LOOK / 4
        simulation.used += 0.5 * LOOK / 4
        simulation.pool.look()
    assert len(simulation.running()) == FEW + 1


def test_kept_workers_are_no_hands(simulation):
    """A worker that a lease keeps between calls does not count: another one begins for it."""
    simulation.take(FEW + 2)
    kept = simulation.running()[0]
    simulation.pool.keep(kept)
    simulation.pool.keep(kept)
    assert simulation.pool.stats().waiting == 1
    assert len(simulation.running()) == FEW + 1
    assert simulation.pool.give_back(kept) is None  # as many others run
    assert kept not in simulation.pool.kept


def test_call_that_must_not_wait_needs_no_hands(simulation):
    """A call that must not wait for a worker has one as long as the bound leaves one."""
    simulation.take(FEW)
    assert simulation.pool.take(mock.Mock(calls=1, loop=None), wait=False) is True
    assert len(simulation.running()) == FEW + 1


def test_call_that_must_not_wait_goes_before_those_that_may(simulation):
    """It has a worker although others wait for their turn, until all workers run."""
    simulation.take(FEW + 5)
    had = [simulation.pool.take(mock.Mock(calls=1, loop=None), wait=False) for _ in range(MOST)]
    assert had == [True] * (MOST - FEW) + [False] * FEW
    now = simulation.pool.stats()
    assert (now.threads, now.waiting) == (MOST, 5)


async def test_all_begin_within_a_moment(pool_settings):
    """Calls that block begin on all workers, although none of them ends."""
    pool_settings(MAX_THREADS=MOST)
    gate = Gate()
    calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(MOST)]
    await gate.entered(MOST)
    assert len(set(gate.threads)) == MOST
    gate.open.set()
    await asyncio.gather(*calls)


async def test_closed_pool_has_all_hands(pool_settings):
    """A pool that was replaced serves its line with every worker, and its threads end."""
    pool_settings(MAX_THREADS=2)
    gate = Gate()
    calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(5)]
    await gate.entered(2)
    old = default_pool()
    old._hands.count = 1
    pool_settings(MAX_THREADS=3)
    gate.open.set()
    await asyncio.wait_for(asyncio.gather(*calls), GUARD)
    for worker in list(old.workers):
        await asyncio.to_thread(worker.join, GUARD)
    assert old.stats().threads == 0


async def test_looks_while_somebody_waits():
    """A loop looks after a pool, with one timer, until nobody waits there."""
    loop, timers = asyncio.get_running_loop(), []
    mailbox, pool, call_later = Mailbox(loop), mock.Mock(), loop.call_later
    pool.look.side_effect = [True, True, False]

    def set_timer(*args):
        timers.append(call_later(*args))
        return timers[-1]

    def rings():
        return len([each for each in timers if not each.cancelled()])

    with mock.patch.object(loop, "call_later", set_timer):
        mailbox.look_after(pool.look)
        mailbox.look_after(pool.look)
        assert rings() == 1
        await until(lambda: pool.look.call_count == 3)
        assert rings() == 3
        mailbox.look_after(pool.look)  # and begins anew
        assert rings() == 4


def test_closed_loop_looks_after_nothing():
    """A call that is made as its loop is closed sets no timer."""
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    loop.close()
    mailbox.look_after(mock.Mock().look)
