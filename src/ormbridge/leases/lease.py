"""The lease: calls that run one at a time on one worker (step 2 of a call).

A lease asks the pool for a worker when its first call arrives, serves its calls in the order in
which they came, and ends when nothing keeps it. What keeps it: that it is *held* (an HTTP request),
an open ``atomic()`` or ``pinned()``, or else a transaction or a suspended generator that one of its
calls left behind.

Guarantees:

* between two calls the worker and its connections belong to the lease;
* a call that comes after the end is told so (:meth:`Lease.put`), never lost;
* a call waits at most ``TIMEOUT`` seconds for its turn;
* the worker is free before the outcome of the last call is handed over.

**Cancellation.** A call that waits for its turn leaves the line. The lease itself ends on its
worker's thread, when that is done, whatever became of the tasks that await its calls.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress

from ..core.call import Call
from ..core.cleaning import close_if_dead, may_be_dead
from ..core.connections import ThreadConnections, in_transaction
from ..core.errors import BridgeError, PoolTimeout, logger
from ..core.pool import Pool
from ..core.route import Route
from ..core.stats import PoolStats
from ..core.worker import Worker, current
from .generators import SuspendedGenerators, current_task
from .turns import Line, hurry, undo


class LeaseRoute(Route):
    """A route whose calls are leases, or have their turn on one that goes on between them."""

    #: What it is, for error messages.
    name: str
    #: Has True once a call of it was refused because no worker became free in time. The blocks of a
    #: request have that of the request.
    timed_out: set[bool]
    #: Whether it is over: a transaction that is left open is rolled back then.
    ended = False

    def for_block(self, name: str) -> LeaseRoute:
        """Return the route whose calls the block *name*, around the running code, has to itself."""
        return self

    def keep(self, lease: Lease) -> None:
        """Send all calls to *lease*, which goes on after a call. Runs on its thread."""

    def forget(self, lease: Lease) -> None:
        """Let go of *lease*, which is over. Runs on its thread."""


class Lease(Line):
    """A line of calls, and the worker that serves it."""

    #: What a block that was left open is told.
    _left = "it was not left"

    def __init__(self, context: LeaseRoute, pool: Pool) -> None:
        """Make a lease that has no worker yet.

        :param context: whose calls it runs.
        """
        super().__init__()
        self.context, self.pool = context, pool
        self._task = current_task()
        #: The worker's; None below a frame.
        self.connections: ThreadConnections | None = None
        self._wake = threading.Lock()  # released once for each time that the worker rests
        self._wake.acquire()
        # The lock of the line guards all of the following.
        #: Whether it goes on between calls until :meth:`release`.
        self._held = False
        #: Whether one was open after the last call.
        self.transaction = False
        self.generators = SuspendedGenerators()
        #: The call that runs. Where there is none, it is known what the last one left.
        self.running: Call | None = None
        #: Whether its thread waits for the next one.
        self.resting = False
        #: The call that was run last, until its outcome is handed over.
        self.last: Call | None = None

    def __str__(self) -> str:
        calls = list(self.waiting) if self.thread is None else [self.running]
        return f"{self.context.name}, {f'in {calls[0]}' if any(calls) else 'idle'}"

    # On an event loop's thread

    def put(self, call: Call, hold: bool = False) -> bool:
        """Put *call* in line. Returns False, and does nothing, if the lease is over.

        :param hold: whether the lease is held from now on, even if it was released before.
        """
        with self.lock:
            # A fork leaves the child without the worker.
            if self.over or not self._has_worker():
                return False
            self._held = self._held or hold
            call.line, call.asked = self, time.monotonic()
            # Whether the first call has to wait, the pool says.
            if not (self.append(call) and self._rouse()) and (self.thread or len(self.waiting) > 1):
                self.watch(call)
        return True

    def _has_worker(self) -> bool:
        return self.thread is None or self.thread.is_alive()

    def watch(self, call: Call) -> None:
        """See to it that *call* waits no longer than it may."""
        call.watch(self.pool.settings.timeout, hurry if call.closes else None)

    def has_something_of_current_task(self) -> bool:
        """Say whether the running task began the lease, or has an iteration left open there."""
        tasks = (self._task, *(each.task for each in list(self.generators.values())))
        return (task := current_task()) is not None and task in tasks

    def release(self, end: bool = False) -> None:
        """End the lease as soon as nothing of it runs and nothing is left open.

        :param end: its context has ended, and so has what no task that lives on iterates on.
        """
        with self.lock:
            self._held = False
            if end:
                self.generators.abandon()
            self.look()

    def _is_kept(self) -> bool:
        kept = self._held or self.waiting or (self.transaction and not self.context.ended)
        return bool(kept or self.blocks or self.pins or self.generators)

    def forget(self, call: Call) -> None:
        """Take *call*, which gave up, out of the line, and the lease out of the pool's."""
        with self.lock:
            for line in self.lines():
                line.pop(call, None)
        self.withdraw(only_empty=True)

    def withdraw(self, only_empty: bool = False) -> list[Call]:
        """Leave the pool's line, and return the calls to be placed elsewhere. Any thread.

        :param only_empty: stay there as long as there is a call.
        """
        with self.lock:
            if (only_empty and self.waiting) or not self.claim():
                return []
            calls = self._close_line()
        self.pool.forget(self)  # not under a lock: who frees a coroutine may have the pool's
        return calls

    def look(self) -> None:
        """Have the worker, if it rests, look for its next call, and whether the lease is kept."""
        with self.lock:
            # The next call finds it over, and asks for a worker of its own.
            self.over = self.over or (self.running is None and not self._is_kept())
            self._rouse()

    def _rouse(self) -> bool:
        # Have a resting worker look again. Returns whether it was resting.
        rested, self.resting = self.resting, False
        if rested:
            self._wake.release()
        return rested

    def time_out(self, call: Call, seen: dict[object, PoolStats]) -> PoolTimeout:
        """Return the error of *call*, which has waited for too long, maybe with the lease."""
        self.context.timed_out.add(True)
        if self.thread is None:
            return self.pool.time_out(call, seen)
        return self.no_turn(call, call.asked)

    # What the pool and its worker need

    def refuse(self, error: BridgeError) -> None:
        """Fail the lease and all its calls with *error*, unless it was claimed before."""
        if self.claim():
            self._refuse(self._close_line(), error)

    def dismiss(self, error: BridgeError) -> None:
        """End the lease after the call that runs now; fail those that wait with *error*."""
        left = [block for block in self.open_blocks() if not block.closing]
        self._refuse(self._abandon(), error)
        for block in left:
            with suppress(Exception):  # a handler fails; this lease and the others are to end
                logger.warning("%s was not left: its worker is given back", str(block))

    def _abandon(self) -> list[Call]:
        # In one step: the worker must not find the lease over and its generators still in use.
        with self.lock:
            calls = self._close_line()
            self.generators.abandon(all_of_them=True)
            self.look()
            return calls

    def _refuse(self, calls: list[Call], error: BridgeError) -> None:
        self.context.timed_out.add(isinstance(error, PoolTimeout))
        for call in calls:
            # Each task gets an error of its own, whose traceback is its own too.
            own = type(error)(*error.args)
            own.__cause__ = error.__cause__
            call.refuse(own)

    # On the worker

    def run(self, connections: ThreadConnections) -> bool:
        """Serve the calls until nothing keeps the lease. Returns whether all of them succeeded."""
        self.thread, self.connections, connections.leased = current(), connections, True
        succeeded = self._serve()
        connections.leased = False
        connections.settle()  # it may have closed and rolled back something since its last call
        return succeeded

    def _serve(self) -> bool:
        succeeded = True
        following = self._next(wait=True)
        while (call := following) is not None:
            following = None  # and so a resting worker keeps nothing of the last call
            if call.claim():
                self.last = call
                succeeded = self._run(call) and succeeded
                self.calls += 1
                if call.iteration is not None:
                    call.iteration.note(self)
                following = self._next(wait=False)
                if following is None and self.over:
                    break
                if not self._held:
                    self.context.keep(self)  # before the caller goes on
                self.finish()
            del call
            following = following or self._next(wait=True)
        undo(self.blocks, self._left)  # those that nobody will leave
        self.context.forget(self)  # no cycle is left
        return succeeded

    def _run(self, call: Call) -> bool:
        return call.run(self.connections, self._replace_dead)

    def _replace_dead(self) -> None:
        """Close what broke in an earlier call of the lease, so that the next call reconnects."""
        for connection in filter(may_be_dead, self.connections.opened):  # type: ignore[union-attr]
            close_if_dead(connection)

    def _next(self, wait: bool) -> Call | None:
        """Return the next call; None once the lease is over, or without *wait* if there is none."""
        own = self.connections
        transaction = own is not None and in_transaction(own.opened)
        while True:
            self.generators.close_unused()
            with self.lock:
                # Since it looked. Its cursor is closed before the end of a block, or another call,
                # and who does not rest yet is not woken.
                if any(each.unused for each in self.generators.values()):
                    continue
                self.transaction = transaction
                call = self.running = self.take()
                if call is not None:
                    return call
                over = self.over = self.over or not self._is_kept()
                self.resting = wait and not over
            # Before the outcome is handed over: once the loop is awake, it has the interpreter.
            if not over and own is not None and isinstance(self.thread, Worker):
                self.pool.keep(self.thread)
            if over or not wait:
                return None
            self._rest()

    def _rest(self) -> None:
        """Wait until there may be something to do."""
        self._wake.acquire()

    def finish(self, may_wait: bool = False) -> None:
        """Hand over the outcome of the last call. Runs on the worker, after it was given back."""
        if self.last is not None:
            self.last.finish(may_wait)
            self.last = None
