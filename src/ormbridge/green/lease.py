"""The lease of a context on its event loop's thread (step 2 of a call)."""

from __future__ import annotations

from asyncio import _get_running_loop, get_running_loop
from typing import Any

from ..core.call import Call
from ..core.connections import ThreadConnections
from ..core.errors import PoolTimeout
from ..leases.lease import Lease
from .runner import Runner, green, greenlets_of
from .worker import apart


class GreenLease(Lease):
    """A lease whose calls run in one greenlet; those that may block, on its worker's thread.

    Where its loop does not run when it begins, it is a lease like any other.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        greenlets = greenlets_of(get_running_loop())
        self.loop = greenlets.loop if greenlets.may_run() else None
        self._runner: Runner | None = None

    def _has_worker(self) -> bool:
        return super()._has_worker() if self._runner is None else not self._runner.is_over()

    def _rouse(self) -> bool:
        # A call from another loop waits for this one, which may be kept waiting for its outcome.
        return super()._rouse() and _get_running_loop() is self.loop

    # In the greenlet

    def run(self, connections: ThreadConnections) -> bool:
        """Serve the calls until nothing keeps the lease. Returns whether all of them succeeded."""
        self._runner = green.runner
        self._wake = self._runner or self._wake  # type: ignore[assignment]
        return super().run(connections)

    def _run(self, call: Call) -> bool:
        # What was given to on_commit() is anybody's.
        apart_only = call.closes and any(each.run_on_commit for each in self.connections.opened)  # type: ignore[union-attr]
        if self._runner is not None and call.loop is not None and not apart_only:
            call.function = call.lean
            return super()._run(call)
        try:
            return bool(apart(super()._run, call))
        except PoolTimeout as error:  # the system starts no thread
            call.refuse(error, claimed=True)
            return False
