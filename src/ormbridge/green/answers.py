"""What a loop sees of its greenlets' connections: the answers of the server (step 5 of a call).

A connection's socket is watched, through a handle of its own, while its greenlet waits, and told of
once. The loop itself would tell of it in each turn until the greenlet has gone on, and those that
have to wait for that are many: so on Linux it watches one epoll object, which has all the sockets.
"""

from __future__ import annotations

import os
import select
import time
import weakref
from asyncio import AbstractEventLoop
from collections import deque
from contextvars import Context
from selectors import EVENT_READ
from typing import Any

#: Seconds in one turn of the loop after which no more greenlets go on: it has other things to do.
SLICE = 0.0005
# Seconds after which a turn in which some were to go on is lost: a signal came in between.
_LOST = 1.0
# What epoll is to tell of a socket: that it can be read, or broke, and that once.
_ONCE = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLONESHOT", 0)


class Answers:
    """Those that the greenlets of one event loop wait for. On its thread."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        # Who waits, by the handle of its socket.
        self._waiting: dict[int, Any] = {}
        # Who has an answer and has not gone on yet, the one that waits longest first.
        self._due = deque[Any]()
        self._until = 0.0  # when this turn's time is up; 0.0 where no further one is asked for
        #: What the loop watches, if the system has it.
        self.epoll: Any = select.epoll() if hasattr(select, "epoll") else None
        if self.epoll is not None:
            self._watch(self.epoll.fileno())

    def wait(self, runner: Any, raw: Any) -> int:
        """Wait in the greenlet of *runner* until *raw*, psycopg's connection, has an answer."""
        fd = vars(raw).get("ormbridge_handle")
        if fd is None:
            # Whoever closes the connection, on whatever thread: the loop only sees that it ended.
            fd = vars(raw)["ormbridge_handle"] = os.dup(raw.fileno())
            weakref.finalize(raw, os.close, fd)
        self._waiting[fd] = runner
        if self.epoll is None:
            self._watch(fd)
        else:
            try:
                self.epoll.modify(fd, _ONCE)
            except FileNotFoundError:  # it is new here
                self.epoll.register(fd, _ONCE)
        while not (ready := runner.suspend()):  # what woke it was meant for another wait
            pass
        return int(ready)

    def _watch(self, fd: int) -> None:
        # In no context: that of a request would be kept.
        Context().run(self._loop.add_reader, fd, self._look, fd)

    def _look(self, fd: int) -> None:
        if self.epoll is None:
            self._loop.remove_reader(fd)
        ready = [fd] if self.epoll is None else [event[0] for event in self.epoll.poll(0)]
        self._due.extend(filter(None, (self._waiting.pop(each, None) for each in ready)))
        if time.monotonic() > self._until + _LOST:
            self._go_on()

    def _go_on(self) -> None:
        self._until = time.monotonic() + SLICE if self._due else 0.0
        if self._due:
            self._loop.call_soon(self._go_on)
        while self._due and time.monotonic() < self._until:
            self._due.popleft().resume(EVENT_READ)
