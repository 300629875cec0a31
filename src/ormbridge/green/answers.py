"""What a loop sees of its greenlets' connections: the answers of the server (step 5 of a call).

A connection's socket is watched, through a handle of its own, while its greenlet waits, and told of
once. The loop itself would tell of it in each turn until the greenlet has gone on, and those that
have to wait for that are many: so it watches one selector, which knows all of the sockets.
"""

from __future__ import annotations

import os
import time
import weakref
from asyncio import AbstractEventLoop
from collections import deque
from contextlib import suppress
from contextvars import Context
from selectors import EVENT_READ, DefaultSelector
from typing import Any

#: Seconds in one turn of the loop after which no more greenlets go on: it has other things to do.
SLICE = 0.0005
# Seconds after which nothing goes on any more that was to: a signal came in between.
_LOST = 1.0


class Answers:
    """Those that the greenlets of one event loop wait for. On its thread."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._selector: Any = DefaultSelector()  # that of Linux and of macOS is a file as well
        # In no context: that of a request would be kept.
        Context().run(loop.add_reader, self._selector.fileno(), self._look)
        # Who has an answer and has not gone on yet, the one that waits longest first.
        self._due = deque[Any]()
        self._until = 0.0  # when no more go on in this turn; 0.0 if none is to in the next one

    def wait(self, runner: Any, raw: Any) -> int:
        """Wait in the greenlet of *runner* until *raw*, psycopg's connection, has an answer."""
        fd = vars(raw).get("ormbridge_handle")
        if fd is None:
            # Whoever closes the connection, on whatever thread: the loop only sees that it ended.
            fd = vars(raw)["ormbridge_handle"] = os.dup(raw.fileno())
            weakref.finalize(raw, os.close, fd)
        self._selector.register(fd, EVENT_READ, runner)
        try:
            while not (ready := runner.suspend()):  # what woke it was meant for another wait
                pass
            return int(ready)
        except BaseException:
            with suppress(KeyError):  # an answer was seen
                self._selector.unregister(fd)
            raise

    def _look(self) -> None:
        for key, _ in self._selector.select(0):
            self._selector.unregister(key.fd)
            self._due.append(key.data)
        if time.monotonic() > self._until + _LOST:
            self._go_on()

    def _go_on(self) -> None:
        self._until = time.monotonic() + SLICE if self._due else 0.0
        if self._due:
            self._loop.call_soon(self._go_on)
        while self._due and time.monotonic() < self._until:
            self._due.popleft().resume(EVENT_READ)
