"""Wait for PostgreSQL in a greenlet: what psycopg's ``Connection.wait`` does on threads.

psycopg 3 does all of its waiting there. It is given a generator that says for what, in the words of
``selectors``: for the socket to be readable, writable, or both. See :mod:`.loops`.

Each connection has a lock, which its greenlet keeps while it waits. Others on that thread may ask
for it all the same: where they free an iteration that was left open, its cursor is closed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
from typing import Any

import psycopg

from .loops import SLICE, answers_of, handle_of
from .runner import Runner, green
from .worker import apart


class Lock:
    """The lock of a connection. A greenlet that waits for it lets the loop go on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.locked = self._lock.locked
        self._owner: Runner | None = None

    def __enter__(self) -> None:
        runner, owner = green.runner, self._owner
        if not self._lock.acquire(blocking=False):
            if owner and owner.thread == threading.get_ident() and runner in (None, owner):
                raise RuntimeError("a call on this thread is in the middle of a statement there")
            apart(self._lock.acquire)
        self._owner = runner

    def __exit__(self, *error: object) -> None:
        self._owner = None
        self._lock.release()


def _ready(raw: Any, seconds: float | None) -> int:
    with DefaultSelector() as selector:
        selector.register(raw.fileno(), EVENT_READ | EVENT_WRITE)
        return sum(events for _, events in selector.select(seconds))


_wait_on_thread = psycopg.Connection.wait


def wait(self: Any, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
    """Do what ``Connection.wait`` does; in a greenlet, let the loop go on meanwhile."""
    runner = green.runner
    if runner is None or runner.is_over() or self.closed:  # a broken one raises there
        return _wait_on_thread(self, gen, *args, **kwargs)
    # notifies() looks at the clock meanwhile. With no file descriptor left the thread waits, too:
    # once a statement is sent, its answer must be had.
    if args or kwargs or (fd := handle_of(self)) is None:
        return apart(partial(_wait_on_thread, self, gen, *args, **kwargs))
    try:
        state = next(gen)
        while True:
            if state & EVENT_WRITE:
                # The server reads what is sent, and the loop has other things to do.
                in_time = time.monotonic() < runner.since + SLICE
                ready = (in_time and _ready(self, 0)) or apart(_ready, self, None)
            else:
                ready = answers_of(runner.loop).wait(runner, fd)
            state = gen.send(ready)
    except StopIteration as end:
        return end.value


psycopg.Connection.wait = wait  # type: ignore[method-assign]
psycopg.connection.Lock = Lock  # type: ignore[assignment, attr-defined]
