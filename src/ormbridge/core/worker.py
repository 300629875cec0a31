"""A worker: one thread and the Django connections that live on it (step 5 of a call).

A worker serves one lease after another. It guarantees that connections are cleaned before a lease
starts and after it ends, that it is free again before the outcome is handed over (so that a caller
who awaits one call after the other finds the same worker), and that it closes its connections on
its own thread when it ends.

It assumes of a lease only what a :class:`Leaseholder` has; none of its methods may raise.
"""

from __future__ import annotations

import threading
import time
from asyncio import AbstractEventLoop
from contextvars import Context
from typing import Any

from . import hooks
from .connections import ThreadConnections, here
from .errors import BridgeError


class Leaseholder:
    """A lease, as a pool and its workers know it."""

    #: ``time.monotonic()`` when the lease asked for a worker.
    asked = 0.0
    #: How many of its calls have run.
    calls = 0
    #: The event loop on whose thread it may run, by a wing; None for a worker's own.
    loop: AbstractEventLoop | None = None

    def __init__(self) -> None:
        self._claim = threading.Lock()

    def claim(self) -> bool:
        """Take the one right to decide what becomes of it. False if it is taken. Any thread."""
        return self._claim.acquire(blocking=False)

    def run(self, connections: ThreadConnections, /) -> bool:
        """Run the lease's calls on the calling thread. Returns whether they succeeded.

        :param connections: those of the thread, a worker's.
        """
        raise NotImplementedError

    def finish(self, may_wait: bool) -> None:
        """Hand the outcome over. After the worker that ran the lease was given back.

        :param may_wait: see :meth:`.Mailbox.post`.
        """

    def refuse(self, error: BridgeError) -> None:
        """Fail the lease with *error*, unless it was claimed before. Any thread."""
        raise NotImplementedError

    def dismiss(self, error: BridgeError) -> None:
        """End the lease after the call that runs; fail those that wait with *error*. Any thread.

        That of one call ends with it.
        """


def current() -> threading.Thread:
    """Return the worker whose lease runs here, or else the calling thread."""
    return here.worker or threading.current_thread()


class Worker(threading.Thread):
    """A thread of the pool, named ``ormbridge-worker-<n>``."""

    #: What its connections are; a wing may have others.
    connections_type: type[ThreadConnections] = ThreadConnections

    def __init__(self, pool: Any, number: int) -> None:
        """Make a worker that has not started.

        :param pool: the :class:`.Pool` that it belongs to.
        """
        # Not a daemon: those are cut off in the middle of a call when the interpreter exits.
        super().__init__(name=f"ormbridge-worker-{number}", daemon=False)
        self.pool = pool
        self.connections = self.connections_type()
        #: The lease served now; and ``time.monotonic()`` since it has the worker, or since nobody
        #: has. Guarded by the pool's lock.
        self.lease: Leaseholder | None = None
        self.since = 0.0
        # Released once for each lease handed to the idle worker, and once where the pool closes.
        self.wake = threading.Lock()
        self.wake.acquire()

    def start(self) -> None:
        """Start the thread, in no context: Sentry would have it in the request that asks first."""
        Context().run(super().start)

    def run(self) -> None:
        """Serve leases until the pool lets the worker go. Runs on the worker's thread."""
        here.worker = self
        self.connections.adopt_thread()
        while (lease := self._wait()) is not None:
            while lease is not None and not (lease.loop and hooks.begin(self, lease)):
                lease = self.serve(lease)
            lease = None  # an idle worker keeps nothing of the last call

    def _wait(self) -> Leaseholder | None:
        """Wait for the next lease. Returns None once the worker has left the pool."""
        max_idle = self.pool.settings.max_idle
        # If the time is up while a lease is on its way here, its wake-up follows.
        # What ran elsewhere meanwhile, on a loop's thread, did not wake it, but was there since: so
        # the worker goes if nothing was for half of the time.
        while not self._is_woken(max_idle):
            if time.monotonic() - self.since > max_idle / 2 and self.pool.retire(self):
                break
        if self.lease is None:
            self.connections.close()
            return self.pool.leave(self)  # type: ignore[no-any-return]
        return self.lease

    def _is_woken(self, seconds: float) -> bool:
        return self.wake.acquire(timeout=seconds)

    def serve(self, lease: Leaseholder) -> Leaseholder | None:
        """Serve *lease*; returns the next one, or None where there is nothing to do."""
        if not lease.claim():
            return self.pool.give_back(self)  # type: ignore[no-any-return]
        own = self.connections
        if self.since >= own.due:
            own.lease_starts(self.since)
        succeeded = lease.run(own)
        if own.opened or own.wrappers or self.pool.reset is not None or not succeeded:
            own.lease_ends(self.pool.reset, failed=not succeeded)
        following: Leaseholder | None = self.pool.give_back(self)
        try:
            lease.finish(self.pool.has_long_line())
        except BaseException:  # Ctrl-C, on an event loop's thread
            if following is not None:
                self.pool.wake(self, following)
            raise
        return following
