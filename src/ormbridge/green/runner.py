"""A greenlet that runs leases on the thread of an event loop (in place of step 5 of a call).

While it waits, for its server or for a thread, the loop goes on: :meth:`Runner.suspend` switches
back to it, and a callback of the loop switches here again. A runner acts for a worker: it has the
worker's lease and its connections. The worker's own thread sleeps meanwhile, and does what may
block (:func:`.apart`): connecting, closing, ``RESET``, functions that are not said to be green.

Guarantees:

* code in a greenlet sees no running event loop, and the connections of its worker, like code on a
  thread;
* nothing that may block runs on the loop's thread but functions that are said to be green;
* where the loop ends, what its greenlets run comes to its end first. Where it was closed under
  them, they are ended with an error, and their workers go back to the pool;
* what a signal raises in between two functions, such as Ctrl-C, comes out of the loop. The caller
  of the call is cancelled, and the worker goes back to the pool.
"""

from __future__ import annotations

import sys
import threading
import time
from asyncio import AbstractEventLoop, _get_running_loop, _set_running_loop, sleep
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial
from typing import Any

from greenlet import getcurrent, greenlet

from ..core.call import Call
from ..core.connections import ThreadConnections, here
from ..core.errors import BridgeError
from ..core.process import after_fork
from ..core.worker import Leaseholder, Worker
from .answers import Answers


class LoopClosedError(BridgeError):
    """The event loop was closed while a greenlet on it waited."""


class _ThreadEnd:
    """Is dropped by a thread as it ends, on that thread."""

    def __del__(self) -> None:
        rescue()


class _Green(threading.local):
    """What runs on the calling thread."""

    #: The greenlet that is to have it: others may be freed before it does, and after.
    given: Runner | None = None
    #: What ends those that still wait when the thread does.
    end: _ThreadEnd | None = None

    def __init__(self) -> None:
        #: Greenlets that have nothing to do. They cannot go to another thread.
        self.idle: list[Any] = []

    @property
    def runner(self) -> Runner | None:
        """The greenlet that has it; None if the loop has."""
        return self.given if self.given and self.given.hub is not getcurrent() else None


green = _Green()
# The child goes on in its function, and not in the loop.
after_fork(partial(setattr, green, "given", None))


class Runner:
    """A greenlet, and the worker whose leases it runs until there is none."""

    #: What it runs: a lease of its worker, on its loop.
    lease: Leaseholder | None = None

    def __init__(self, greenlets: Greenlets, worker: Any) -> None:
        """Make one on the thread of the loop, which begins with what :meth:`resume` is given."""
        self.greenlets, self.loop, self.worker = greenlets, greenlets.loop, worker
        self.thread, self._ended = threading.get_ident(), False
        #: Whether it waits, in async_to_sync, for what only its loop can do.
        self.awaits = False
        #: How often it was switched to, or back: an odd number while it has the thread.
        self.turns = 0
        # One that has ended, by an interrupt, is false.
        self._greenlet: Any = (green.idle and green.idle.pop()) or greenlet(_serve)
        self._greenlet.parent = getcurrent()
        if not self._greenlet:  # with nothing: it would keep what it is given first
            self._greenlet.switch()

    # On the loop's thread, outside of greenlets

    def resume(self, *value: Any) -> None:
        """Go on in the greenlet, until it waits again or ends.

        :param value: what :meth:`suspend` returns there; at the beginning this and its first lease.
        """
        if self._greenlet is None:  # it is done
            return
        outside, worker, loop = green.given, here.worker, _get_running_loop()
        try:
            green.given, self.hub, here.worker = self, getcurrent(), self.worker
            self.turns += 1
            _set_running_loop(None)
            self._greenlet.switch(*value)
        finally:
            self.turns += 1
            _set_running_loop(loop)
            green.given, here.worker = outside, worker

    def end(self) -> None:
        """End it, because its loop does not go on: what it does then waits in the thread."""
        self._ended = True
        self.resume()

    # In the greenlet

    def run(self, lease: Any) -> None:
        """Run *lease*, and those that its worker has next."""
        try:
            self.greenlets.running.add(self)
            while lease is not None and lease.loop is self.loop:
                self.lease = lease
                if isinstance(lease, Call):
                    lease.function = lease.lean
                turn = self.turns
                lease = self.worker.serve(lease)
                if lease is not None and turn == self.turns:  # it never waited: the loop must
                    self.wake()
                    self.suspend()
        except BaseException as error:  # its loop was closed while it rested, or a signal came
            # What it still does waits in the thread.
            self._ended = True
            lease = lease and self.worker.give_up(lease)
            if not isinstance(error, LoopClosedError):
                raise
        finally:
            if lease is not None:
                self.worker.pool.wake(self.worker, lease)
            self.greenlets.running.discard(self)
            green.idle.append(getcurrent())
            self._greenlet = None

    def suspend(self) -> Any:
        """Let the loop go on until somebody resumes. Returns what that one gives.

        :raises LoopClosedError: if the loop is closed.
        """
        if not self.is_over():
            # What runs now may be a greenlet of the function's own, inside ours.
            ours, self._greenlet = self._greenlet, getcurrent()
            value = ours.parent.switch()
            self._greenlet = ours
            if not self._ended:
                return value
        raise LoopClosedError("the event loop was closed, and a call on it was ended [loop-closed]")

    # Any thread

    def is_over(self) -> bool:
        """Say whether its loop does not go on."""
        return self._ended or self.loop.is_closed()

    def wake(self) -> None:
        """Have it resumed soon."""
        own = threading.get_ident() == self.thread
        try:
            (self.loop.call_soon if own else self.loop.call_soon_threadsafe)(self.resume)
        except RuntimeError:  # the loop is closed
            if own and green.runner is not self:
                self.end()

    #: In place of a lease's lock, which is released where it is to wake.
    acquire, release = suspend, wake


def _serve() -> None:
    """Act for one runner after the other.

    A new greenlet would be dear: the system has to give a stack for it, and takes it back.
    """
    own: Any = getcurrent()
    while True:
        runner, lease = own.parent.switch()
        runner.run(lease)
        runner = lease = None  # nothing of the last one is left


class Greenlets:
    """Those of one event loop."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        # The thread is that of the loop, unless it is moved.
        self.loop, self.thread = loop, threading.get_ident()
        green.end = green.end or _ThreadEnd()
        #: Those that run.
        self.running: set[Runner] = set()
        watches = type(loop).add_reader is not AbstractEventLoop.add_reader
        #: The answers that they wait for. False if it can watch no socket: Windows' proactor.
        self.answers: Any = watches and Answers(loop)
        #: What has them end with the loop: its shutdown_asyncgens() does.
        self.ends = self._end()
        with suppress(StopIteration):  # it has begun
            self.ends.__anext__().send(None)

    def may_run(self) -> bool:
        """Say whether the running code may begin one, on top of its stack; where that ends, raise.

        :raises RecursionError: before a worker is had that could not be given back.
        """
        limit, deep = sys.getrecursionlimit(), False
        with suppress(ValueError):  # there are not so many frames
            sys._getframe(limit // 4)  # noqa: SLF001 # it is documented
            deep = True
            sys._getframe(limit - 100)  # noqa: SLF001
            raise RecursionError("a call of the bridge is made too deep in the stack")
        return bool(self.answers) and not deep

    async def _end(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:  # the loop shuts down: wait for what runs, and for nothing else
            deadline = time.monotonic() + ThreadConnections.BOUND + 1
            while self.running:
                for runner in list(self.running):
                    if getattr(runner.lease, "resting", False) or time.monotonic() > deadline:
                        runner.end()
                await sleep(0.001)


# They know their loops, and are forgotten once these are closed, or their thread ends: by rescue().
_greenlets: dict[AbstractEventLoop, Greenlets] = {}


def greenlets_of(loop: AbstractEventLoop) -> Greenlets:
    """Return those of *loop*. On its thread, while it runs."""
    if loop not in _greenlets:
        rescue(only_closed=True)
        _greenlets[loop] = Greenlets(loop)
    return _greenlets[loop]


def at_work() -> list[tuple[Runner, int]]:
    """Return those that have a thread now, each with its turns. Any thread."""
    # Copies, each made in one step.
    runners = [each for own in list(_greenlets.values()) for each in list(own.running)]
    return [(each, turns) for each in runners if (turns := each.turns) % 2]


def rescue(only_closed: bool = False) -> None:
    """End what waits on the calling thread in loops that do not run.

    :param only_closed: spare those that are not closed: they may run again.
    """
    own = threading.get_ident()
    for loop, greenlets in list(_greenlets.items()):
        if not loop.is_running() and (loop.is_closed() or not only_closed):
            for runner in [r for r in list(greenlets.running) if r.thread == own and not r.awaits]:
                runner.end()
            if (loop.is_closed() or greenlets.thread == own) and not greenlets.running:
                _greenlets.pop(loop, None)
                # It may go on, with others.
                if (epoll := getattr(greenlets.answers, "epoll", None)) and not loop.is_closed():
                    loop.remove_reader(epoll.fileno())
                with suppress(StopIteration, RuntimeError):  # or its end would be the loop's to do
                    greenlets.ends.aclose().send(None)


def begin(worker: Worker, lease: Leaseholder) -> bool:
    """Run *lease* on its loop's thread, for *worker*. False if it has no loop that runs."""
    loop = lease.loop
    # Without an errand, it was switched off meanwhile.
    if loop is None or not (loop.is_running() and hasattr(worker, "errand")):
        return False
    if _get_running_loop() is loop:
        return _begin(worker, lease, loop)
    with suppress(RuntimeError):  # it was closed this very moment
        return bool(loop.call_soon_threadsafe(_begin, worker, lease, loop))
    return False


def _begin(worker: Worker, lease: Leaseholder, loop: AbstractEventLoop) -> bool:
    runner = Runner(greenlets_of(loop), worker)
    runner.resume(runner, lease)
    return True
