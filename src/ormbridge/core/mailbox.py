"""The way back: outcomes are handed to an event loop in batches (step 6 of a call).

One mailbox an event loop, which has it as an attribute, so that they go together. Workers post from
their threads. An item wakes the loop unless a delivery is on its way, which then takes it along:
one waking a delivery, seldom one more. Waking a loop is a system call and a switch of threads, so
this is where the speed is. As long as enough calls wait to keep the workers busy, outcomes wait for
the next look at the pool: what their callers do next could not start sooner.

It also knows which calls of its loop wait, and until when. That is one timer for all that wait for
one thing as long, not one a call: whoever began to wait first is the first whose time is up.

Guarantees:

* while the loop turns, what was posted is delivered once, on its thread, in order; one bad
  item never stops the rest of its batch, which Ctrl-C puts off to the next turn. What comes after
  the loop closed is dropped: nobody is left to have it;
* however many are delivered or overdue at one time, the loop turns after BATCH of them;
* nothing is known of a call that has its outcome, nor of the context in which one was made: a
  timer keeps the context that it was set in, and sets the next one there.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from itertools import islice
from typing import Any

#: Seconds between two looks at a pool, from when a call of the loop waits there.
LOOK = 0.002
#: Items in one turn of the loop, at the most: some 10 ms, with what their tasks do then.
BATCH = 128

#: What is called with those whose time is up.
Expire = Callable[[list[Any]], object]


class Mailbox:
    """The mailbox of one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        # By the seconds that they may wait, and for what: who waits, and until when, in that order.
        # There is a timer for each. Any thread may take out who waits no longer.
        self._waiting: dict[tuple[float, Expire], dict[Any, float]] = {}
        self._items: deque[Callable[[], object]] = deque()
        self._waking = False  # a delivery is on its way
        self._looks: set[Callable[[], bool]] = set()  # of pools

    def post(self, item: Callable[[], object], may_wait: bool = False) -> None:
        """Have *item* called on the loop's thread, to deliver something there. Any thread.

        What it raises is reported to the loop's exception handler.

        :param may_wait: whether the next look is soon enough, if there is one.
        """
        self._items.append(item)
        # No lock: the order append, test, set here against reset, pop in _deliver can wake once too
        # often, never once too seldom. The same holds for the last look.
        if not (self._waking or (may_wait and self._looks)):
            self._waking = True
            try:
                self.loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop is closed
                self._items.clear()
                self._waking = False

    def _deliver(self) -> None:
        self._waking = False
        try:
            for _ in range(min(len(self._items), BATCH)):
                item = self._items.popleft()
                try:
                    item()
                except Exception as error:
                    trouble = {"message": f"could not deliver {item!r}", "exception": error}
                    self.loop.call_exception_handler(trouble)
        finally:  # Ctrl-C comes out of the loop, and the others are delivered once that goes on
            if self._items and not self._waking:  # first the loop does what came of these
                self._waking = True
                self.loop.call_soon(self._deliver)

    def look_after(self, look: Callable[[], bool]) -> None:
        """Have *look* called from time to time, until it returns False; see :meth:`.Pool.look`."""
        if look not in self._looks and not self.loop.is_closed():
            self._looks.add(look)
            Context().run(self.loop.call_later, LOOK, self._look, look)

    def _look(self, look: Callable[[], bool]) -> None:
        again = self.loop.call_later(LOOK, self._look, look)  # before it can fail
        if not look():
            again.cancel()
            self._looks.discard(look)
        if not self._waking:
            self._deliver()

    def watch(self, item: Any, seconds: float, expire: Expire) -> dict[Any, float]:
        """Have *expire* called with *item*, among others, in *seconds*. On the loop's thread.

        :returns: what to take *item* out of when it waits no longer. Any thread may.
        """
        waiting = self._waiting.get((seconds, expire))
        if waiting is None:
            waiting = {}
            if not self.loop.is_closed():
                self._waiting[seconds, expire] = waiting
                Context().run(self.loop.call_later, seconds, self._ring, seconds, expire)
        waiting.pop(item, None)  # who begins to wait again is the last one
        waiting[item] = time.monotonic() + seconds
        return waiting

    def _ring(self, seconds: float, expire: Expire) -> None:
        waiting, now = self._waiting[seconds, expire], time.monotonic()
        # Of a copy: a coroutine, freed at any time on any thread, may take one out meanwhile.
        first = list(islice(waiting.copy().items(), BATCH))
        overdue = [item for item, deadline in first if deadline <= now]
        for item in overdue:
            waiting.pop(item, None)
        if waiting:
            left = [deadline - now for _, deadline in first[len(overdue) :]]
            # Several at a time, each of which has its own: to copy 50,000 that wait takes 2 ms.
            self.loop.call_later(max(left[0], 5 * LOOK) if left else 0, self._ring, seconds, expire)
        else:
            del self._waiting[seconds, expire]
        expire(overdue)


def mailbox_of(loop: Any) -> Mailbox:
    """Return the mailbox of *loop*, which runs on the calling thread."""
    mailbox: Mailbox | None = getattr(loop, "ormbridge_mailbox", None)
    if mailbox is None:
        mailbox = loop.ormbridge_mailbox = Mailbox(loop)
    return mailbox
