"""What an event loop has of its greenlets: those that run, and the answers that they wait for.

A connection's socket is watched, through a handle of its own, while its greenlet waits, and told of
once. The loop itself would tell of it in each turn until the greenlet has gone on, and those that
have to wait for that are many: so on Linux it watches one epoll object, which has all the sockets.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import time
import weakref
from asyncio import AbstractEventLoop, get_running_loop, sleep
from collections import deque
from contextlib import suppress
from contextvars import Context
from selectors import EVENT_READ
from typing import Any

from ..core.connections import ThreadConnections

#: Seconds in one turn of the loop after which no more greenlets go on: it has other things to do.
SLICE = 0.0005
# Seconds after which a turn in which some were to go on is lost: a signal came in between.
_LOST = 1.0
# What epoll is to tell of a socket: that it can be read, or broke, and that once.
_ONCE = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLONESHOT", 0)

#: The greenlets that run, on all loops. Others look at a copy: to make one takes no lock.
running: set[Any] = set()


class Answers:
    """Those that the greenlets of one event loop wait for. On its thread.

    The loop has them, and they know nothing of it, so that they go with it.
    """

    def __init__(self, loop: AbstractEventLoop) -> None:
        # Who waits, by the handle of its socket.
        self._waiting: dict[int, Any] = {}
        # Who has an answer and has not gone on yet, the one that waits longest first.
        self._due = deque[Any]()
        self._until = 0.0  # when this turn's time is up; 0.0 where no further one is asked for
        #: Whether the loop can watch sockets: Windows' proactor does not.
        self.can_come = type(loop).add_reader is not AbstractEventLoop.add_reader
        # What the loop watches, if the system has it.
        self._epoll: Any = select.epoll() if self.can_come and hasattr(select, "epoll") else None
        if self._epoll is not None:
            self._watch(loop, self._epoll.fileno())
        # The loop closes us as it shuts down: it takes us for an asynchronous generator.
        if (told := sys.get_asyncgen_hooks().firstiter) is not None:
            told(self)  # type: ignore[arg-type]

    def wait(self, runner: Any, fd: int) -> int:
        """Wait in the greenlet of *runner* until *fd*, from :func:`handle_of`, has an answer."""
        self._waiting[fd] = runner
        if self._epoll is None:
            self._watch(runner.loop, fd)
        else:
            try:
                self._epoll.modify(fd, _ONCE)
            except FileNotFoundError:  # it is new here
                self._epoll.register(fd, _ONCE)
        while not (ready := runner.suspend()):  # what woke it was meant for another wait
            pass
        return int(ready)

    def _watch(self, loop: AbstractEventLoop, fd: int) -> None:
        # In no context: that of a request would be kept.
        Context().run(loop.add_reader, fd, self._look, fd)

    def _look(self, fd: int) -> None:
        if self._epoll is None:
            get_running_loop().remove_reader(fd)
        ready = [fd] if self._epoll is None else [event[0] for event in self._epoll.poll(0)]
        self._due.extend(filter(None, (self._waiting.pop(each, None) for each in ready)))
        if time.monotonic() > self._until + _LOST:
            self._go_on()

    def _go_on(self) -> None:
        self._until = time.monotonic() + SLICE if self._due else 0.0
        if self._due:
            get_running_loop().call_soon(self._go_on)
        while self._due and time.monotonic() < self._until:
            self._due.popleft().resume(EVENT_READ)

    async def aclose(self) -> None:
        """Wait for what runs, as the loop shuts down, and for nothing else."""
        loop, deadline = get_running_loop(), time.monotonic() + ThreadConnections.BOUND + 1
        while own := [each for each in list(running) if each.loop is loop]:
            for runner in own:
                if getattr(runner.lease, "resting", False) or time.monotonic() > deadline:
                    runner.end()
            await sleep(0.001)


def handle_of(raw: Any) -> int | None:
    """Return the handle to watch *raw* by, psycopg's connection; None if the system has no more."""
    if (fd := vars(raw).get("ormbridge_handle")) is None:
        # Whoever closes the connection, on whatever thread: the loop only sees that it ended.
        with suppress(OSError):
            fd = vars(raw)["ormbridge_handle"] = os.dup(raw.fileno())
            weakref.finalize(raw, os.close, fd)
    return fd  # type: ignore[no-any-return]


def answers_of(loop: Any) -> Answers:
    """Return those of *loop*. On its thread, while it runs."""
    answers: Answers | None = getattr(loop, "ormbridge_answers", None)
    if answers is None:
        rescue(only_closed=True)
        answers = loop.ormbridge_answers = Answers(loop)
    return answers


def may_begin(loop: AbstractEventLoop) -> bool:
    """Say whether the code that runs on *loop* may begin a greenlet, on top of its stack.

    :raises RecursionError: where that ends: before a worker is had that could not be given back.
    """
    limit = sys.getrecursionlimit()
    try:
        sys._getframe(limit // 4)  # noqa: SLF001 # it is documented
    except ValueError:  # there are not so many frames
        return answers_of(loop).can_come
    with suppress(ValueError):
        sys._getframe(limit - 100)  # noqa: SLF001
        raise RecursionError("a call of the bridge is made too deep in the stack")
    return False


def rescue(only_closed: bool = False) -> None:
    """End what waits on the calling thread in loops that do not run.

    :param only_closed: spare those that are not closed: they may run again.
    """
    own = threading.get_ident()
    for runner in [each for each in list(running) if each.thread == own and not each.awaits]:
        if runner.loop.is_closed() or not (only_closed or runner.loop.is_running()):
            runner.end()
