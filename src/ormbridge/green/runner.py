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
from asyncio import AbstractEventLoop, _get_running_loop, _set_running_loop, tasks
from contextlib import suppress
from functools import partial
from typing import Any

from greenlet import getcurrent, greenlet

from ..core.connections import here
from ..core.errors import BridgeError
from ..core.process import after_fork
from ..core.worker import Leaseholder, Worker
from .loops import rescue, running

# Since Python 3.14 the task that runs is the thread's, no longer the loop's: while there is one,
# another loop on that thread runs none.
_swap_task: Any = sys.version_info >= (3, 14) and tasks._swap_current_task  # noqa: SLF001


class LoopClosedError(BridgeError):
    """The event loop was closed while a greenlet on it waited."""


class _Idle(list[Any]):
    """Greenlets of a thread that have nothing to do: they cannot go to another. It ends there."""

    def __del__(self) -> None:
        rescue()


class _Green(threading.local):
    """What runs on the calling thread."""

    #: The greenlet that is to have it: others may be freed before it does, and after.
    given: Runner | None = None

    def __init__(self) -> None:
        self.idle = _Idle()

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
    #: Since when it has the thread, on the clock of time.monotonic(); 0.0 while it waits.
    since = 0.0
    #: Whether it waits, in async_to_sync, for what only its loop can do.
    awaits = False
    _ended = False

    def __init__(self, worker: Any, loop: AbstractEventLoop) -> None:
        """Make one on the thread of *loop*, which begins with what :meth:`resume` is given."""
        self.worker, self.loop, self.thread = worker, loop, threading.get_ident()
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
        task = _swap_task and loop and _swap_task(loop, None)
        try:
            _set_running_loop(None)
            self.hub, now, here.worker = getcurrent(), time.monotonic(), self.worker
            green.given, self.since = self, now
            self._greenlet.switch(*value)
        finally:
            # Python looks at signals as a function begins, and as one of C returns: here it may
            # raise Ctrl-C where the switch above has not begun, but not between these.
            begun, self.since, green.given, here.worker = self.since, 0.0, outside, worker
            _set_running_loop(loop)
            if _swap_task and loop is not None:
                _swap_task(loop, task)
            if not begun:
                self.wake(*value)

    def end(self) -> None:
        """End it, because its loop does not go on: what it does then waits in the thread."""
        self._ended = True
        self.resume()

    # In the greenlet

    def run(self, lease: Any) -> None:
        """Run *lease*, and those that its worker has next."""
        try:
            running.add(self)
            while lease is not None and lease.loop is self.loop:
                self.lease, since = lease, self.since
                lease = self.worker.serve(lease)
                if lease is not None and since == self.since:  # it never waited: the loop must
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
            running.discard(self)
            green.idle.append(getcurrent())
            self._greenlet = self.lease = None  # which knows us

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

    def wake(self, *value: Any) -> None:
        """Have it resumed soon, with *value*; see :meth:`resume`."""
        own = threading.get_ident() == self.thread
        try:
            (self.loop.call_soon if own else self.loop.call_soon_threadsafe)(self.resume, *value)
        except RuntimeError:  # the loop is closed
            if own and green.runner is not self:
                self.end()

    #: In place of a lease's lock, which is released where it is to wake.
    acquire, release = suspend, wake


def _serve() -> None:
    """Act for one runner after the other.

    A new greenlet would be dear: the system has to give a stack for it, and takes it back.
    """
    while True:
        runner, lease = getcurrent().parent.switch()  # type: ignore[union-attr] # it has one
        runner.run(lease)
        runner = lease = None  # nothing of the last one is left


def begin(worker: Worker, lease: Leaseholder) -> bool:
    """Run *lease* on its loop's thread, for *worker*. False if it has no loop that runs."""
    loop = lease.loop
    # Its thread starts first, and comes here: where it can't, the lease waits for another worker.
    # Without an errand, it was switched off meanwhile.
    if loop is None or worker.ident is None or not hasattr(worker, "errand"):
        return False
    if _get_running_loop() is loop:
        return _begin(worker, lease, loop)
    with suppress(RuntimeError):  # it was closed this very moment
        return loop.is_running() and bool(loop.call_soon_threadsafe(_begin, worker, lease, loop))
    return False


def _begin(worker: Worker, lease: Leaseholder, loop: AbstractEventLoop) -> bool:
    runner = Runner(worker, loop)
    runner.resume(runner, lease)
    return True
