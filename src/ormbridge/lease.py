"""The lease: calls that run one at a time on one worker (step 2 of a call).

A lease asks the pool for a worker when its first call arrives, serves its calls in the order in
which they came, and ends when nothing keeps it. What keeps it: that it is *held* (an HTTP request),
an open ``atomic()`` or ``pinned()``, or else a transaction or a suspended generator that one of its
calls left behind.

Guarantees:

* between two calls the worker and its connections belong to the lease;
* a call that comes after the end is told so (:meth:`Lease.submit`), never lost;
* a call waits at most ``TIMEOUT`` seconds for its turn;
* the worker is free before the outcome of the last call is handed over.

**Cancellation.** A call that waits for its turn leaves the line. The lease itself ends on its
worker's thread, when that is done, whatever became of the tasks that await its calls.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from .blocks import Block, outwards
from .call import Call
from .connections import ThreadConnections
from .errors import BridgeError, PoolTimeout, logger
from .generators import SuspendedGenerators, current_task, lives_on
from .pool import Pool
from .stats import PoolStats
from .turns import Turns
from .worker import Worker

if TYPE_CHECKING:
    from .context import LeaseContext


class Lease(Turns):
    """A line of calls, and the worker that serves it."""

    def __init__(self, context: LeaseContext, pool: Pool, held: bool) -> None:
        """Make a lease that has no worker yet.

        :param context: whose calls it runs.
        :param held: whether it goes on between calls until :meth:`release`.
        """
        super().__init__(context.name, pool.settings)
        self.context = context
        self._task = current_task()
        #: Calls that have run.
        self.calls = 0
        self.pool = pool
        self.asked = 0.0
        #: The worker, from the first call on.
        self.worker: Worker | None = None
        self._claim = threading.Lock()
        self._wake = threading.Lock()  # released once for each time that the worker rests
        self._wake.acquire()
        # All of the following is guarded by _lock.
        self._held = held
        self._pins: set[Block] = set()  # open pinned() blocks
        self._abandoned: list[Block] = []  # those that nobody will leave
        #: Whether its context has ended.
        self.ended = False
        #: Whether one was open after the last call.
        self.transaction = False
        self._generators = SuspendedGenerators(self)
        self._resting = False
        self._idle = False  # what the last call left is known, and none has begun since
        #: Whether it takes no more calls.
        self.over = False
        self._last: Call | None = None

    # On an event loop's thread

    def put(self, call: Call, hold: bool = False) -> bool:
        """Put *call* in line. Returns False, and does nothing, if the lease is over.

        :param hold: whether the lease is held from now on, even if it was released before.
        """
        with self._lock:
            # A fork leaves the child without the worker.
            if self.over or (self.worker is not None and not self.worker.is_alive()):
                return False
            self._held = self._held or hold
            if call.block is not None and not call.stays_out:
                # With its first call, a pinned() block keeps the lease.
                for block in outwards(call.block):
                    if block.line is None and not (block.exclusive or block.closing):
                        block.line = self
                        self._pins.add(block)
            self._append(call)
            # Whether the first call has to wait, the pool says.
            roused = self._is_turn_of(call) and self._rouse()
            if not roused and (self.worker or len(self._line) > 1):
                call.watch(self.settings)
        return True

    def unpin(self, block: Block) -> None:
        """Let go of *block*, a ``pinned()`` that ends."""
        with self._lock:
            self._pins.discard(block)
            self.look()

    def is_of_current_task(self) -> bool:
        """Say whether the running task made the first call of the lease."""
        return self._task is not None and self._task == current_task()

    def has_something_of_current_task(self) -> bool:
        """Say whether the running task began the lease, or has an iteration left open there."""
        return self.is_of_current_task() or self._generators.of_current_task()

    def release(self, end: bool = False) -> None:
        """End the lease as soon as nothing of it runs and nothing is left open.

        :param end: roll back a transaction that is left open, instead of waiting for its end.
        """
        with self._lock:
            self._held = False
            self.ended = self.ended or end
            if end:
                self._generators.abandon()
            self.look()

    def end(self) -> None:
        """End the lease with its context. Any thread.

        A task that lives on may end the transaction that it has open; with the task, that ends too.
        """
        task = lives_on(self._task)
        self.release(end=task is None)
        if task is not None:
            end = functools.partial(_end_lease, weakref.ref(self))
            try:
                task.get_loop().call_soon_threadsafe(task.add_done_callback, end)
            except RuntimeError:  # the loop is closed
                self.release(end=True)

    def _is_kept(self) -> bool:
        left_open = self.transaction and not self.ended
        return self._held or left_open or bool(self._blocks or self._pins or self._generators)

    def open_blocks(self) -> list[Block]:
        """Return the blocks that keep it. Any thread."""
        with self._lock:
            return [*self._blocks, *self._pins]

    def forget(self, call: Call) -> None:
        """Take *call*, which gave up, out of the line, and the lease out of the pool's."""
        super().forget(call)
        self.withdraw(only_empty=True)

    def waits(self) -> bool:
        """Say whether the lease is still in the pool's line."""
        return self.worker is None and not self.over

    def withdraw(self, only_empty: bool = False) -> Iterable[Call]:
        """Leave the pool's line, and return the calls to be placed elsewhere. Any thread.

        :param only_empty: stay there as long as there is a call.
        """
        with self._lock:
            if (only_empty and self._line) or not self.claim():
                return ()
            line = self._close_line()
        self.pool.forget(self)  # not under a lock: who frees a coroutine may have the pool's
        return line

    def look(self) -> None:
        """Have the worker, if it rests, look for its next call, and whether the lease is kept."""
        with self._lock:
            # The next call finds it over, and asks for a worker of its own.
            self.over = self.over or (self._idle and not self._line and not self._is_kept())
            self._rouse()

    def _rouse(self) -> bool:
        # Have a resting worker look again. Returns whether it was resting.
        rested, self._resting = self._resting, False
        if rested:
            self._wake.release()
        return rested

    # What the pool and its worker need

    def claim(self) -> bool:
        """Decide that the lease starts. Returns False where it was withdrawn or refused before."""
        return self._claim.acquire(blocking=False)

    def refuse(self, error: BridgeError) -> bool:
        """Fail the lease and all its calls with *error*. False if it was claimed before."""
        if not self.claim():
            return False
        self._refuse_line(error)
        return True

    def dismiss(self, error: BridgeError) -> None:
        """End the lease after the call that runs now; fail those that wait with *error*."""
        self._refuse_line(error)
        with self._lock:
            for block in self.open_blocks():
                logger.warning("%s was not left: its worker is given back", block)
            self._generators.abandon(all_of_them=True)
            self._abandoned, self._blocks = self._blocks, []
            self._pins.clear()
            self.release(end=True)

    def _refuse_line(self, error: BridgeError) -> None:
        self.context.timed_out = self.context.timed_out or isinstance(error, PoolTimeout)
        for call in self._close_line():
            # Each task gets an error of its own, whose traceback is its own too.
            own = type(error)(*error.args)
            own.__cause__ = error.__cause__
            call.refuse(own)

    def _close_line(self) -> Iterable[Call]:
        with self._lock:
            self.over = True
            line, self._line = self._line, OrderedDict()
            if self.worker is None:  # their next call may find one
                for block in self._pins:
                    block.line = None
                self._pins.clear()
        return line

    def time_out(self, call: Call, seen: dict[object, PoolStats]) -> PoolTimeout:
        """Return the error of *call*, which has waited for too long, maybe with the lease."""
        self.context.timed_out = True
        if self.worker is None:
            return self.pool.time_out(call, seen)
        return super().time_out(call, seen)

    # On the worker

    def run(self, connections: ThreadConnections) -> bool:
        """Serve the calls until nothing keeps the lease. Returns whether all of them succeeded."""
        self.thread = self.worker = cast(Worker, threading.current_thread())
        connections.leased = True
        succeeded = True
        call = self._next(wait=True)
        while call is not None:
            if not call.claim():
                call = self._next(wait=True)
                continue
            self._running = call
            succeeded = call.run(connections, connections.replace_dead) and succeeded
            self._running = None
            self.calls += 1
            with self._lock:
                self._generators.note(call)
            following = self._next(wait=False)
            if following is None and self.over:
                self._last = call
                break
            if not self._held:
                self.context.keep(self)  # before the caller goes on
            call.finish()
            call = following
            if call is None:  # and so a resting worker keeps nothing of the last call
                call = self._next(wait=True)
        self.undo(self._abandoned, "it was not left")
        connections.leased = False
        self.context.forget(self)  # no cycle is left
        return succeeded

    def _next(self, wait: bool) -> Call | None:
        """Return the next call; None once the lease is over, or without *wait* if there is none."""
        worker = cast(Worker, self.worker)
        transaction = worker.connections.in_transaction()
        while True:
            self._generators.close_unused()
            with self._lock:
                self.transaction = transaction
                call = self._take()
                self._idle = call is None
                if call is not None:
                    return call
                self.over = self.over or not (self._line or self._is_kept())
                if self.over or not wait:
                    return None
                self._resting = True
            self.pool.hold(worker)
            self._wake.acquire()

    def finish(self, stalled: Callable[[], None] | None) -> None:
        """Hand over the outcome of the last call. Runs on the worker, after it was given back."""
        if self._last is not None:
            self._last.finish(stalled)
            self._last = None


def _end_lease(lease: weakref.ref[Lease], task: asyncio.Task[Any]) -> None:
    if (ended := lease()) is not None:
        ended.release(end=True)
