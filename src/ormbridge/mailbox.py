"""The way back: outcomes are handed to an event loop in batches (step 6 of a call).

One mailbox an event loop. Workers post from their threads; the first item in an empty mailbox wakes
the loop, the others ride along. Waking a loop is a system call and a switch of threads, so this is
where the speed is. While the line of waiting calls is long, outcomes are also held for HOLD seconds
to gather: what their callers do next could not start sooner. The worker that finds the line short
ends the hold.

Guarantees: what was posted before the loop closed is delivered once, on the loop's thread, in
order; one bad item never stops the rest of its batch. What comes after the loop closed is dropped:
nobody is left to have it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

#: Seconds that an outcome may be held while enough calls wait to keep every worker busy.
HOLD = 0.005

_thread = threading.local()


class Item(Protocol):
    """Something to deliver on the loop's thread."""

    def deliver(self) -> None:
        """Deliver it. What this raises is reported to the loop's exception handler."""


class Mailbox:
    """The mailbox of one event loop."""

    __slots__ = ("_held", "_items", "_stalled", "_waking", "loop", "timers")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        #: One timer for each pool in which calls of this loop wait. Used on the loop's thread only.
        self.timers: dict[Any, asyncio.TimerHandle] = {}
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
        while self._items:
            item = self._items.popleft()
            try:
                item.deliver()
            except Exception as error:
                self.loop.call_exception_handler(
                    {"message": f"could not deliver {item!r}", "exception": error}
                )
        stalled, self._stalled = self._stalled, None
        if stalled is not None:
            # Workers have enough to do without what these outcomes bring: let them gather.
            self._waking = self._held = True
            self.loop.call_later(HOLD, self._look, stalled)

    def _look(self, stalled: Callable[[], None]) -> None:
        if self._held:
            if not self._items:
                stalled()
            self._deliver()

    def at(self, key: Any, seconds: float, callback: Callable[..., object], *args: Any) -> None:
        """Call *callback* in *seconds*, unless a timer for *key* runs. On the loop's thread."""
        if key not in self.timers:
            self.timers[key] = self.loop.call_later(seconds, self._timed, key, callback, args)

    def drop(self, key: Any) -> None:
        """Forget the timer for *key*. On the loop's thread."""
        timer = self.timers.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _timed(self, key: Any, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        del self.timers[key]
        callback(*args)


def mailbox_of(loop: asyncio.AbstractEventLoop) -> Mailbox:
    """Return the mailbox of *loop*, which runs on the calling thread."""
    # A thread runs one loop at a time, so remembering the last one spares a dict of weak
    # references.
    mailbox: Mailbox | None = getattr(_thread, "mailbox", None)
    if mailbox is None or mailbox.loop is not loop:
        mailbox = _thread.mailbox = Mailbox(loop)
    return mailbox
