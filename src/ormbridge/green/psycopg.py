"""Wait for PostgreSQL in a greenlet: what psycopg's ``Connection.wait`` does on threads.

psycopg 3 does all of its waiting there. It is given a generator that says for what: for the socket
to be readable, writable, or both. The socket is watched through a handle of its own, once for each
connection: whoever closes the connection, on whatever thread, the loop only sees that it ended.
"""

from __future__ import annotations

import os
import select
from asyncio import AbstractEventLoop
from collections.abc import Generator
from contextvars import Context
from functools import partial
from typing import Any

import psycopg

from .runner import Runner, apart, green

# psycopg.waiting.Wait, and Ready.
_READ, _WRITE = 1, 2


class Watch:
    """A loop's watch over the socket of one connection. On the loop's thread."""

    def __init__(self, raw: Any, loop: AbstractEventLoop) -> None:
        """Begin to watch.

        :raises NotImplementedError: if *loop* watches no sockets (Windows' proactor).
        """
        self.loop = loop
        self._runner: Runner | None = None
        self._fd = os.dup(raw.fileno())
        self.watching = True
        Context().run(loop.add_reader, self._fd, self._readable)  # that of a request is kept else

    def wait(self, runner: Runner, state: int) -> int:
        """Wait in the greenlet until the socket is as *state* says. Returns what it is."""
        if state & _WRITE:
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            if poll.poll(0):
                return _WRITE
            self.loop.add_writer(self._fd, self._ready, _WRITE)
        self._runner = runner
        try:
            ready: int = runner.suspend()
            return ready
        finally:
            self._runner = None
            if state & _WRITE and not self.loop.is_closed():
                self.loop.remove_writer(self._fd)

    def _readable(self) -> None:
        if self._runner is not None:
            self._ready(_READ)
        else:  # a thread reads from it, it ended, or has news
            self.watching = False
            self.loop.remove_reader(self._fd)

    def _ready(self, state: int) -> None:
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.resume(state)

    def __del__(self) -> None:
        os.close(self._fd)


_wait_on_thread = psycopg.Connection.wait


def wait(self: Any, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
    """Do what ``Connection.wait`` does; in a greenlet, let the loop go on meanwhile."""
    runner = green.runner
    if runner is None or runner.is_over():
        return _wait_on_thread(self, gen, *args, **kwargs)
    if "timeout" in kwargs:
        return apart(partial(_wait_on_thread, self, gen, *args, **kwargs))
    watch: Watch | None = vars(self).get("ormbridge_watch")
    try:
        state = next(gen)
        while True:
            if watch is None or watch.loop is not runner.loop or not watch.watching:
                watch = vars(self)["ormbridge_watch"] = Watch(self, runner.loop)
            state = gen.send(watch.wait(runner, state))
    except StopIteration as end:
        return end.value


psycopg.Connection.wait = wait  # type: ignore[method-assign]
