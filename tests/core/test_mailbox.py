"""Batches, one wake-up each; loops that are many, closed, uvloop's, or in debug mode."""

import asyncio
import gc
import threading
import time
import warnings
import weakref
from contextlib import suppress
from contextvars import ContextVar
from unittest import mock

import pytest

from ormbridge.core.bridge import database_sync_to_async
from ormbridge.core.mailbox import BATCH, LOOK, Mailbox, mailbox_of
from ormbridge.core.process import stats
from tests.core.gate import GUARD, Gate
from tests.core.support import until


class Item:
    """Notes that it was delivered, or fails."""

    def __init__(self, delivered, value):
        self.delivered = delivered
        self.value = value

    def __call__(self):
        if isinstance(self.value, BaseException):
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


async def test_outcomes_that_may_wait_come_with_the_next_look():
    """What may wait wakes no loop that will look at the pool; what may not takes it along."""
    loop = asyncio.get_running_loop()
    mailbox, delivered, pool = Mailbox(loop), [], mock.Mock()
    with mock.patch.object(loop, "call_soon_threadsafe", wraps=loop.call_soon_threadsafe) as woken:
        with mock.patch.object(loop, "call_later") as timer:  # it rings when the test has it ring
            mailbox.look_after(pool.look)
            _, ring, *args = timer.call_args.args
            mailbox.post(Item(delivered, 0), may_wait=True)
            await asyncio.sleep(0)
            assert (delivered, woken.call_count) == ([], 0)
            ring(*args)
            assert delivered == [0]
            mailbox.post(Item(delivered, 1), may_wait=True)
            mailbox.post(Item(delivered, 2))
            await asyncio.sleep(0)
            assert (delivered, woken.call_count) == ([0, 1, 2], 1)
            mailbox.post(Item(delivered, 3), may_wait=True)
            pool.look.return_value = False
            ring(*args)  # the last look takes what there is
            assert delivered == [0, 1, 2, 3]
        mailbox.post(Item(delivered, 4), may_wait=True)
        await asyncio.sleep(0)
    assert (delivered, woken.call_count) == ([0, 1, 2, 3, 4], 2)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_look_that_fails_is_made_again(error):
    """What a look at the pool raises, or Ctrl-C in it, ends no looking: outcomes wait for it."""
    loop, looks, delivered = asyncio.new_event_loop(), [], []
    mailbox = Mailbox(loop)
    loop.set_exception_handler(lambda loop, context: looks.append(context["exception"]))

    def look():
        looks.append("look")
        if len(looks) == 1:
            mailbox.post(Item(delivered, 1), may_wait=True)
            raise error
        return False

    async def wait():
        mailbox.look_after(look)
        await until(lambda: delivered)

    with suppress(KeyboardInterrupt):  # which comes out of the loop; then that goes on
        loop.run_until_complete(wait())
    loop.run_until_complete(until(lambda: delivered))
    assert [each for each in looks if each == "look"] == ["look"] * 2
    assert not mailbox._looks
    loop.close()


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


def test_interrupt_in_a_batch():
    """Ctrl-C in the middle of a batch comes out of the loop; the rest of the batch comes next."""
    loop = asyncio.new_event_loop()
    mailbox, delivered = Mailbox(loop), []
    for value in (1, KeyboardInterrupt(), 2):
        mailbox.post(Item(delivered, value))
    loop.call_soon(loop.stop)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert delivered == [1]
    assert turns_of(loop, lambda: len(delivered)) == [1]
    assert delivered == [1, 2]
    loop.close()


def test_post_to_a_closed_loop_is_dropped():
    """What is posted after the loop closed is dropped without an error, now and later."""
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    loop.close()
    mailbox.post(Item([], 1))
    mailbox.post(Item([], 2))
    assert not mailbox._items


def test_mailbox_is_kept_for_its_loop():
    """A loop has one mailbox as long as it lives, whatever loops run on its thread in between."""

    async def mailbox():
        return mailbox_of(asyncio.get_running_loop())

    with asyncio.Runner() as one, asyncio.Runner() as other:
        mailboxes = [runner.run(mailbox()) for runner in (one, other, one)]
        assert [each.loop for each in mailboxes[:2]] == [one.get_loop(), other.get_loop()]
    assert mailboxes[2] is mailboxes[0]


def test_mailbox_goes_with_its_loop():
    """Nothing keeps a loop that has ended, nor its mailbox, nor what was not delivered there."""
    delivered = Item([], 1)
    loop = asyncio.new_event_loop()
    mailbox_of(loop).post(delivered)
    loop.close()
    gone = [weakref.ref(each) for each in (loop, mailbox_of(loop), delivered)]
    del loop, delivered
    gc.collect()
    assert [each() for each in gone] == [None] * 3


async def test_one_timer_for_all_who_wait():
    """All who wait equally long have one timer, and each gets its own time."""
    loop = asyncio.get_running_loop()
    mailbox, overdue = Mailbox(loop), []
    with mock.patch.object(loop, "call_later", wraps=loop.call_later) as timers:
        for item in range(100):
            mailbox.watch(item, GUARD, overdue.append)
        assert timers.call_count == 1
        mailbox.watch("short", 0.0, overdue.append)
        await until(lambda: overdue)
    assert overdue == [["short"]]
    assert [seconds for seconds, _ in mailbox._waiting] == [GUARD]


async def test_who_began_to_wait_again_waits_from_then_on(monkeypatch):
    """Whoever is watched anew is behind those that came before, with a deadline of its own."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    mailbox, overdue = Mailbox(mock.Mock(**{"is_closed.return_value": False})), []
    mailbox.watch("first", 10.0, overdue.extend)
    mailbox.watch("second", 10.0, overdue.extend)
    now = 105.0
    mailbox.watch("first", 10.0, overdue.extend)
    now = 110.0
    mailbox._ring(10.0, overdue.extend)
    assert overdue == ["second"]
    assert mailbox.loop.call_later.call_args.args[0] == 5.0
    now = 115.0
    mailbox._ring(10.0, overdue.extend)
    assert overdue == ["second", "first"]
    assert mailbox._waiting == {}


async def test_who_waits_no_longer_is_forgotten():
    """Nothing is kept of who was taken out, and the timer rings for nobody."""
    mailbox, rung = Mailbox(asyncio.get_running_loop()), []
    mailbox.watch("gone", 0.0, rung.append).pop("gone")
    await until(lambda: rung)
    assert rung == [[]]
    assert mailbox._waiting == {}


async def test_no_timer_keeps_the_context_of_who_waited(gate, pool_settings):
    """What a request has in its context goes with it, also where others wait on for hours."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e9)
    variable = ContextVar("variable")

    async def wait(value):
        variable.set(value)
        await database_sync_to_async(len)("")

    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    value = Item([], 1)
    first, second = asyncio.create_task(wait(value)), asyncio.create_task(wait(None))
    gone = weakref.ref(value)
    del value
    await until(lambda: stats().waiting == 2)
    first.cancel()
    await asyncio.wait([first])
    del first
    gc.collect()
    assert gone() is None
    gate.open.set()
    await asyncio.wait([running, second])


async def test_those_who_waited_on_a_closed_loop_are_not_watched():
    """On a loop that is closed there is no timer, and no error either."""
    loop = asyncio.new_event_loop()
    mailbox = Mailbox(loop)
    loop.close()
    assert list(mailbox.watch("item", 1.0, list)) == ["item"]
    assert mailbox._waiting == {}


def turns_of(loop, count):
    """Turn *loop* by hand; return what ``count()`` grew by in each turn, until it grows no more."""
    seen, grown = count(), []
    while True:
        loop.call_soon(loop.stop)
        loop.run_forever()
        before, seen = seen, count()
        if seen == before:
            return grown
        grown.append(seen - before)


def test_loop_turns_between_batches():
    """However many outcomes there are, no more than a batch is delivered in a turn of the loop."""
    loop = asyncio.new_event_loop()
    mailbox, delivered = Mailbox(loop), []
    for number in range(2 * BATCH + 1):
        mailbox.post(Item(delivered, number))
    assert turns_of(loop, lambda: len(delivered)) == [BATCH, BATCH, 1]
    assert delivered == list(range(2 * BATCH + 1))
    loop.close()


def test_posted_between_batches():
    """What is posted while batches follow each other comes last, and is not lost."""
    loop = asyncio.new_event_loop()
    mailbox, delivered = Mailbox(loop), []

    class Posting(Item):
        def __call__(self):
            super().__call__()
            mailbox.post(Item(delivered, "last"))

    mailbox.post(Posting(delivered, "first"))
    for number in range(2 * BATCH):
        mailbox.post(Item(delivered, number))
    grown = turns_of(loop, lambda: len(delivered))
    assert delivered == ["first", *range(2 * BATCH), "last"]
    assert grown == [BATCH, BATCH, 2]
    loop.close()


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


async def test_those_whose_time_is_up_soon_are_taken_together(monkeypatch):
    """Where many wait, each with a time of its own, the loop does not turn for each of them."""
    loop, expired, delays = asyncio.get_running_loop(), asyncio.Queue(), []
    mailbox, original = Mailbox(loop), loop.call_later

    def call_later(delay, *args, **how):
        delays.append(delay)
        return original(delay, *args, **how)

    monkeypatch.setattr(loop, "call_later", call_later)
    now = time.monotonic()
    waiting = mailbox.watch("first", 0.001, expired.put_nowait)
    mailbox.watch("second", 0.001, expired.put_nowait)
    waiting.update(first=now, second=now + 0.0011)
    clock = mock.Mock(monotonic=lambda: now + 0.001)
    monkeypatch.setattr("ormbridge.core.mailbox.time", clock)
    assert await expired.get() == ["first"]
    monkeypatch.undo()
    assert await expired.get() == ["second"]
    assert delays == [0.001, 5 * LOOK]
