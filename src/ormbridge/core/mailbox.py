"""The way back: outcomes are handed to an event loop in batches (step 6 of a call).

One mailbox an event loop. Workers post from their threads; the first item in an empty mailbox wakes
the loop, the others ride along. Waking a loop is a system call and a switch of threads, so this is
where the speed is. While the line of waiting calls is long, outcomes are also held for HOLD seconds
to gather: what their callers do next could not start sooner. The worker that finds the line short
ends the hold.

It also knows which calls of its loop wait, and until when. That is one timer a loop, not one a
call: whoever began to wait first is the first whose time is up.

Guarantees:

* what was posted before the loop closed is delivered once, on the loop's thread, in order; one bad
  item never stops the rest of its batch. What comes after the loop closed is dropped: nobody is
  left to have it;
* however many are delivered or overdue at one time, the loop turns after BATCH of them;
* nothing is known of a call that has its outcome.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

#: Seconds that an outcome may be held while enough calls wait to keep every worker busy.
HOLD = 0.005
#: Items in one turn of the loop, at the most: some 10 ms, with what their tasks do then.
BATCH = 128

#: What is called with those whose time is up.
Expire = Callable[[list[Any]], object]

_thread = threading.local()


class Item(Protocol):
    """Something to deliver on the loop's thread."""

    def deliver(self) -> None:
        """Deliver it. What this raises is reported to the loop's exception handler."""


class Mailbox:
    """The mailbox of one event loop."""

    __slots__ = ("_held", "_items", "_stalled", "_waiting", "_waking", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # By the seconds that they may wait, and for what: who waits, and until when, in that order.
        # There is a timer for each. Used on the loop's thread only.
        self._waiting: dict[tuple[float, Expire], OrderedDict[Any, float]] = {}
        self._items: deque[Item] = deque()
        self._waking = False  # a delivery is on its way
        self._held = False  # … but only when HOLD seconds are over
        self._stalled: Callable[[], None] | None = None  # of the last item that had one

    def post(self, item: Item, stalled: Callable[[], None] | None = None) -> None:
        """Have *item* delivered. Called from any thread.

        :param stalled: given while enough calls wait in line to keep every worker busy. The item
            may then be held, and this is called if no other follows, or if the loop is closed.
        """
        self._items.append(item)
        self._stalled = stalled or self._stalled
        # No lock: the order append, test, set here against reset, pop in _deliver can wake once too
        # often, never once too seldom.
        if not self._waking or (self._held and stalled is None):
            self._waking, self._held = True, False
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed
                self._items.clear()
                self._waking = False
                if stalled is not None:
                    stalled()

    def _deliver(self) -> None:
        self._waking = self._held = False
        left = BATCH
        while self._items and left:
            left -= 1
            item = self._items.popleft()
            try:
                item.deliver()
            except Exception as error:
                trouble = {"message": f"could not deliver {item!r}", "exception": error}
                self.loop.call_exception_handler(trouble)
        if self._items and not self._waking:  # first the loop does what came of these
            self._waking = True
            self.loop.call_soon(self._deliver)
        elif self._stalled is not None:
            # Workers have enough to do without what these outcomes bring: let them gather.
            stalled, self._stalled = self._stalled, None
            self._waking = self._held = True
            self.loop.call_later(HOLD, self._look, stalled)

    def _look(self, stalled: Callable[[], None]) -> None:
        if self._held:
            if not self._items:
                stalled()
            self._deliver()

    def watch(self, item: Any, seconds: float, expire: Expire) -> OrderedDict[Any, float]:
        """Have *expire* called with *item*, among others, in *seconds*. On the loop's thread.

        :returns: what to take *item* out of when it waits no longer.
        """
        waiting = self._waiting.get((seconds, expire))
        if waiting is None:
            waiting = OrderedDict()
            if not self.loop.is_closed():
                self._waiting[seconds, expire] = waiting
                self.loop.call_later(seconds, self._ring, seconds, expire)
        waiting[item] = time.monotonic() + seconds
        waiting.move_to_end(item)
        return waiting

    def _ring(self, seconds: float, expire: Expire) -> None:
        waiting, left = self._waiting[seconds, expire], 0.0
        overdue: list[Any] = []
        with suppress(KeyError):  # a coroutine, freed on another thread, took the last one out
            while waiting and left <= 0 and len(overdue) < BATCH:
                item, deadline = waiting.popitem(last=False)
                left = deadline - time.monotonic()
                overdue.append(item)
        if left > 0:  # not yet the last one's
            waiting[overdue[-1]] = time.monotonic() + left
            waiting.move_to_end(overdue.pop(), last=False)
        if waiting:
            self.loop.call_later(max(left, 0.0), self._ring, seconds, expire)
        else:
            del self._waiting[seconds, expire]
        expire(overdue)


def mailbox_of(loop: asyncio.AbstractEventLoop) -> Mailbox:
    """Return the mailbox of *loop*, which runs on the calling thread."""
    # A thread runs one loop at a time, so remembering the last one spares a dict of weak
    # references.
    mailbox: Mailbox | None = getattr(_thread, "mailbox", None)
    if mailbox is None or mailbox.loop is not loop:
        mailbox = _thread.mailbox = Mailbox(loop)
    return mailbox
