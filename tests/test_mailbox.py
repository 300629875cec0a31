"""Batches, one wake-up each; loops that are many, closed, uvloop's, or in debug mode."""

import asyncio
import threading
import warnings
from unittest import mock

import pytest

from ormbridge import database_sync_to_async, stats
from ormbridge.mailbox import Mailbox, mailbox_of
from tests.gate import GUARD, Gate
from tests.test_call import until


class Item:
    """Notes that it was delivered, or fails."""

    def __init__(self, delivered, value):
        self.delivered = delivered
        self.value = value

    def deliver(self):
        if isinstance(self.value, Exception):
            raise self.value
        self.delivered.append(self.value)


async def test_one_wake_up_for_a_batch():
    """What is posted while the loop is busy is delivered in order, with one wake-up of the loop."""
    loop = asyncio.get_running_loop()
    mailbox, delivered = Mailbox(loop), []
    with mock.patch.object(loop, "call_soon_threadsafe", wraps=loop.call_soon_threadsafe) as woken:
        for number in range(100):
            mailbox.post(Item(delivered, number))
        await asyncio.sleep(0)
    assert delivered == list(range(100))
    assert woken.call_count == 1


async def test_woken_again_after_a_batch():
    """What is posted after a batch was delivered wakes the loop again."""
    mailbox, delivered = Mailbox(asyncio.get_running_loop()), []
    for number in range(3):
        mailbox.post(Item(delivered, number))
        await asyncio.sleep(0)
    assert delivered == [0, 1, 2]


async def test_outcomes_gather_while_the_line_is_long():
    """While the line is long, outcomes wake the loop no more; a timer takes them."""
    loop = asyncio.get_running_loop()
    mailbox, delivered = Mailbox(loop), []
    with mock.patch.object(loop, "call_later") as timer:  # it rings when the test has it ring
        mailbox.post(Item(delivered, 0), stalled=list)
        await asyncio.sleep(0)
    with mock.patch.object(loop, "call_soon_threadsafe", wraps=loop.call_soon_threadsafe) as woken:
        for number in (1, 2, 3):
            mailbox.post(Item(delivered, number), stalled=list)
            await asyncio.sleep(0)
        assert delivered == [0]
        _, ring, *args = timer.call_args.args
        ring(*args)
        assert delivered == [0, 1, 2, 3]
    assert woken.call_count == 0


async def test_says_when_nothing_follows():
    """When no outcome follows while they gather, the mailbox says so once, and holds no more."""
    mailbox, delivered, told = Mailbox(asyncio.get_running_loop()), [], []
    mailbox.post(Item(delivered, 0), stalled=lambda: told.append("stalled"))
    await until(lambda: told)
    assert told == ["stalled"]
    assert not mailbox._held


async def test_short_line_ends_the_gathering():
    """A worker that finds the line short has its outcome, and those held, delivered at once."""
    mailbox, delivered = Mailbox(asyncio.get_running_loop()), []
    mailbox.post(Item(delivered, 0), stalled=list)
    await asyncio.sleep(0)
    mailbox.post(Item(delivered, 1), stalled=list)
    mailbox.post(Item(delivered, 2), stalled=None)
    await asyncio.sleep(0)
    assert delivered == [0, 1, 2]
    mailbox.post(Item(delivered, 3), stalled=None)
    await asyncio.sleep(0)
    assert delivered == [0, 1, 2, 3]


async def test_gathering_ends_when_nothing_comes():
    """When nothing comes while outcomes gather, the next one wakes the loop again."""
    loop = asyncio.get_running_loop()
    mailbox, delivered = Mailbox(loop), []
    mailbox.post(Item(delivered, 0), stalled=list)
    await asyncio.sleep(0)
    await until(lambda: not mailbox._held)
    with mock.patch.object(loop, "call_soon_threadsafe", wraps=loop.call_soon_threadsafe) as woken:
        mailbox.post(Item(delivered, 1), stalled=list)
        await asyncio.sleep(0)
    assert delivered == [0, 1]
    assert woken.call_count == 1


async def test_bad_item_does_not_stop_its_batch():
    """An item whose delivery fails is reported to the loop; the rest of its batch arrives."""
    loop = asyncio.get_running_loop()
    mailbox, delivered, reported = Mailbox(loop), [], []
    loop.set_exception_handler(lambda loop, context: reported.append(context["exception"]))
    error = LookupError("cannot be delivered")
    for value in (1, error, 2):
        mailbox.post(Item(delivered, value))
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert delivered == [1, 2]
    assert reported == [error]


def test_post_to_a_closed_loop_is_dropped():
    """What is posted after the loop closed is dropped without an error, now and later."""
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    loop.close()
    mailbox.post(Item([], 1))
    mailbox.post(Item([], 2))
    assert not mailbox._items


async def test_mailbox_is_kept_for_its_loop():
    """A loop has one mailbox as long as it runs on its thread."""
    loop = asyncio.get_running_loop()
    assert mailbox_of(loop) is mailbox_of(loop)
    assert mailbox_of(loop).loop is loop


async def test_timer_runs_once_for_a_key():
    """A key has one timer at a time, and can have another when it has rung."""
    mailbox, rung = Mailbox(asyncio.get_running_loop()), []
    for _ in range(2):
        mailbox.at("key", 0.0, rung.append, "first")
        mailbox.at("key", 0.0, rung.append, "second")
        await until(lambda: not mailbox.timers)
    assert rung == ["first", "first"]


def many_calls():
    async def main():
        return sum(await asyncio.gather(*[database_sync_to_async(len)("abc") for _ in range(100)]))

    return main()


def test_several_loops_at_once(pool_settings):
    """Event loops on several threads share the pool, and each gets its own outcomes."""
    pool_settings(MAX_THREADS=3)
    results = []

    def run_a_loop():
        results.extend([asyncio.run(many_calls()) for _ in range(5)])

    threads = [threading.Thread(target=run_a_loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GUARD)
    assert results == [300] * 20
    assert stats().threads == 3


def test_loops_one_after_the_other():
    """A second event loop on a thread uses the workers that the first one left."""
    assert [asyncio.run(many_calls()) for _ in range(3)] == [300, 300, 300]


def test_two_loops_in_turn_on_one_thread():
    """Two event loops that take turns on a thread each get their own outcomes."""
    with asyncio.Runner() as one, asyncio.Runner() as other:
        for _ in range(3):
            assert one.run(many_calls()) == 300
            assert other.run(many_calls()) == 300


def test_uvloop():
    """The bridge works on uvloop."""
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(many_calls()) == 300


def test_debug_mode():
    """The bridge works in asyncio's debug mode, which refuses calls from the wrong thread."""
    assert asyncio.run(many_calls(), debug=True) == 300


@pytest.mark.parametrize("debug", [False, True])
def test_loop_closed_while_a_call_runs(debug):
    """If the loop closes while a call runs, the call ends and its worker is free again."""
    gate = Gate()

    async def leave_behind():
        call = asyncio.ensure_future(database_sync_to_async(gate)())
        await gate.entered()
        call.cancel()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(leave_behind(), debug=debug)
    assert len(stats().holders) == 1
    gate.open.set()
    asyncio.run(until(lambda: stats().holders == ()))
    assert asyncio.run(many_calls()) == 300


async def test_other_outcome_does_not_take_the_alarm_back():
    """That no outcome follows is told although one came in between that was not to be held."""
    mailbox, told = Mailbox(asyncio.get_running_loop()), []
    mailbox.post(Item([], 0), stalled=lambda: told.append("stalled"))
    mailbox.post(Item([], 1))
    await until(lambda: told)
    assert told == ["stalled"]
