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
  them, they are ended with an error, and their workers go back to the pool.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from asyncio import AbstractEventLoop, _get_running_loop, _set_running_loop
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from greenlet import GreenletExit, getcurrent, greenlet

from ..core.call import Call
from ..core.connections import ThreadConnections, here
from ..core.errors import BridgeError
from ..core.worker import Leaseholder, Worker


class LoopClosedError(BridgeError):
    """The event loop was closed while a greenlet on it waited."""


class _Green(threading.local):
    """What runs on the calling thread."""

    #: The greenlet that has it; None if the loop has.
    runner: Runner | None = None
    #: The loop that made the last call.
    loop: AbstractEventLoop | None = None
    #: Whether that can watch a socket: Windows' proactor cannot.
    watches = True
    #: Its greenlets that run, and those that are idle.
    runners: set[Runner]
    idle: list[Runner]


green = _Green()
if hasattr(os, "register_at_fork"):  # the child goes on in its function, and not in the loop
    os.register_at_fork(after_in_child=partial(setattr, green, "runner", None))
# Those of each loop that run, those that are idle, and what has them end with it.
_runners: WeakKeyDictionary[AbstractEventLoop, tuple[set[Runner], list[Runner]]]
_runners = WeakKeyDictionary()
# They know their loops, and so are forgotten once these are closed: by rescue().
_ends: WeakKeyDictionary[AbstractEventLoop, AsyncGenerator[None]] = WeakKeyDictionary()


class Runner:
    """A greenlet, and the worker whose leases it runs."""

    #: What it runs, if anything: a lease of its worker, on its loop.
    lease: Leaseholder | None = None
    worker: Any
    loop: AbstractEventLoop

    def __init__(self, own: set[Runner], idle: list[Runner]) -> None:
        """Make one that is idle, on the thread of a loop, which has *own* and *idle* ones."""
        self._own, self._idle = own, idle
        self.thread = threading.get_ident()
        self._ended = False
        #: Whether it waits for the next call of its lease.
        self.rests = False
        #: How often it was switched to, or back: an odd number while it has the thread.
        self.turns = 0
        self._loops: Any = getcurrent()
        self._greenlet = greenlet(self._run)
        self._greenlet.switch()

    # On the loop's thread, outside of greenlets

    def resume(self, *value: Any) -> None:
        """Go on in the greenlet, until it waits again or ends.

        :param value: what :meth:`suspend` returns there; the lease, to an idle one.
        """
        outside, worker, loop = green.runner, here.worker, _get_running_loop()
        green.runner, here.worker = self, self.worker
        self.turns += 1
        _set_running_loop(None)
        try:
            if not self._ended:
                self._greenlet.switch(*value)
            elif not self._greenlet.dead:
                self._greenlet.throw(GreenletExit)
        finally:
            self.turns += 1
            _set_running_loop(loop)
            green.runner, here.worker = outside, worker

    def end(self) -> None:
        """End it, because its loop does not go on: what it does then waits in the thread."""
        self._ended = True
        self.resume()

    # In the greenlet

    def _run(self) -> None:
        while not self._ended:
            self._idle.append(self)
            lease: Leaseholder | None = self._loops.switch()
            self._own.add(self)
            self.lease = lease
            while lease is not None:
                if isinstance(lease, Call):
                    lease.function = lease.lean
                turn = self.turns
                self.worker.pool.keep(self.worker)
                self.lease = lease = self.worker.serve(lease)
                if lease is not None and lease.loop is not self.loop:
                    self.worker.pool.wake(self.worker, lease)
                    self.lease = lease = None
                elif lease is not None and turn == self.turns:  # it never waited: the loop must
                    self.wake()
                    with suppress(LoopClosedError):
                        self.suspend()
            self._own.discard(self)

    def suspend(self) -> Any:
        """Let the loop go on until somebody resumes. Returns what that one gives.

        :raises LoopClosedError: if the loop is closed.
        """
        if not self.is_over():
            with suppress(GreenletExit):
                return self._loops.switch()
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


def enter(loop: AbstractEventLoop) -> None:
    """Note that code on *loop* makes a call. On its thread."""
    begins = loop not in _ends
    if begins:
        rescue(closed=True)
        _runners[loop] = set(), []
    green.loop, (green.runners, green.idle) = loop, _runners[loop]
    green.watches = type(loop).add_reader is not AbstractEventLoop.add_reader
    if begins:
        watch = _ends[loop] = _end_with(green.runners, green.idle)
        with suppress(StopIteration):  # it has begun; the loop's shutdown_asyncgens() ends it
            watch.__anext__().send(None)


async def _end_with(runners: set[Runner], idle: list[Runner]) -> AsyncGenerator[None]:
    try:
        yield
    finally:  # it shuts down: wait for what runs, and for nothing else
        deadline = time.monotonic() + ThreadConnections.BOUND + 1
        while runners:
            late = time.monotonic() > deadline
            for runner in [runner for runner in runners if runner.rests or late]:
                runner.end()
            await asyncio.sleep(0.001)
        for runner in idle:
            runner.end()
        idle.clear()


def at_work() -> list[tuple[Runner, int]]:
    """Return those that have a thread now, each with its turns. Any thread."""
    with suppress(RuntimeError):  # one came or went this very moment
        runners = [runner for own, _ in list(_runners.values()) for runner in list(own)]
        return [(each, turns) for each in runners if (turns := each.turns) % 2]
    return []


def rescue(closed: bool = False) -> None:
    """End what waits on the calling thread in loops that do not run, or were *closed*."""
    own = threading.get_ident()
    for loop, (runners, idle) in list(_runners.items()):
        if not loop.is_running() and (loop.is_closed() or not closed):
            for runner in [each for each in (*runners, *idle) if each.thread == own]:
                runner.end()
            if loop.is_closed() and not runners:
                _runners.pop(loop, None)
                _ends.pop(loop, None)


def begin(worker: Worker, lease: Leaseholder) -> bool:
    """Run *lease* on its loop's thread, for *worker*. False if it has no loop, or a closed one."""
    loop = lease.loop
    if loop is None or not hasattr(worker, "errand"):  # it was switched off meanwhile
        return False
    if _get_running_loop() is loop:
        _begin(worker, lease, loop)
        return True
    try:
        loop.call_soon_threadsafe(_begin, worker, lease, loop)
    except RuntimeError:  # it was closed this very moment
        return False
    return True


def _begin(worker: Worker, lease: Leaseholder, loop: AbstractEventLoop) -> None:
    if green.loop is not loop:
        enter(loop)
    idle = green.idle
    while idle and idle[-1].thread != threading.get_ident():  # the loop ran on another one
        del idle[-1]
    if not idle:
        Runner(green.runners, idle)
    runner = idle.pop()
    runner.worker, runner.loop = worker, loop
    runner.resume(lease)
