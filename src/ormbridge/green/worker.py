"""A worker whose lease may run elsewhere than on its thread, and that lease (steps 2 and 4).

The thread does then what may block. See :mod:`.runner`.
"""

from __future__ import annotations

import contextvars
from asyncio import CancelledError, _get_running_loop, get_running_loop
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ..core.asgiref import move_locals, take_over
from ..core.connections import ThreadConnections, here
from ..core.settings import Reset
from ..core.worker import Leaseholder, Worker
from ..leases.lease import Lease
from ..postgres.connections import StoppedConnections
from .loops import may_begin
from .runner import LoopClosedError, Runner, green


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call *function*, which may block, on the worker's thread; wait for it in the greenlet.

    Elsewhere than in a greenlet, or if the worker was given back, here. It runs in the context of
    the caller.
    """
    runner = green.runner
    if runner is None or runner.worker.lease is not runner.lease:
        return function(*args)
    worker, variables, outcome = runner.worker, contextvars.copy_context(), Future[Any]()
    run: Any = partial(variables.run, move_locals, variables, partial(function, *args))
    worker.errand = partial(_do, run, outcome, runner)
    worker.wake.release()
    with suppress(LoopClosedError):
        while not outcome.done():  # what it is woken for may be another wait
            runner.suspend()
    try:
        return outcome.result()  # waits, if the loop was closed
    finally:
        take_over(variables, contextvars.copy_context())
        del outcome


def _do(run: Callable[[], Any], outcome: Future[Any], runner: Runner) -> None:
    try:
        outcome.set_result(run())
    except BaseException as error:
        outcome.set_exception(error)
    runner.wake()


class GreenConnections(StoppedConnections):
    """The connections of a worker, on whichever thread its lease runs."""

    def lease_ends(self, reset: Reset | None, failed: bool) -> None:
        """Leave every connection as the next lease may have it, or close it."""
        super().lease_ends(reset and partial(apart, reset), failed)

    def catch_up(self) -> None:
        """Wait for who still cancels a statement, or breaks a connection, of a call that ended."""
        if self.finishing.acquire(False):
            self.finishing.release()
        else:
            apart(super().catch_up)

    def _close(self, connection: Any, wrapper: type[BaseDatabaseWrapper]) -> None:
        apart(super()._close, connection, wrapper)

    def discard(self, connection: BaseDatabaseWrapper, reason: str) -> None:
        """Roll *connection* back, close it and forget it, and log the *reason*."""
        apart(super().discard, connection, reason)


class GreenWorker(Worker):
    """A worker that does errands for its lease, where that runs elsewhere."""

    connections_type = GreenConnections
    #: What is to be done. Set before the thread is woken for it.
    errand: Callable[[], object] | None = None

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: Django's wrappers, as attributes.
        self.aliases = SimpleNamespace()
        self.connections.wrappers = vars(self.aliases)

    def give_up(self, lease: Any) -> Leaseholder | None:
        """Be free of *lease*, which was ended in the middle of anything; return the next one."""
        call = getattr(lease, "last", lease)
        if call is not None:
            call.refuse(CancelledError(), claimed=True)
        if self.lease != lease:  # it was given back before
            return None
        if call is not lease:
            lease.dismiss(CancelledError())
            lease.run(self.connections)  # no more than what it has left open
        self.connections.running = None
        self.connections.settle()
        self.connections.lease_ends(self.pool.reset, failed=True)
        return self.pool.give_back(self)  # type: ignore[no-any-return]

    def _is_woken(self, seconds: float) -> bool:
        while super()._is_woken(seconds):
            errand, self.errand = self.errand, None
            if errand is None:
                return True
            errand()
            del errand
        return False


class GreenLease(Lease):
    """A lease whose calls run in one greenlet; what may block in them, on its worker's thread.

    Where its loop does not run when it begins, it is a lease like any other.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        loop = get_running_loop()
        self.loop = loop if may_begin(loop) else None
        self._runner: Runner | None = None

    def _has_worker(self) -> bool:
        return super()._has_worker() if self._runner is None else not self._runner.is_over()

    def _rouse(self) -> bool:
        # A call from another loop waits for this one, which may be kept waiting for its outcome.
        return super()._rouse() and (self.loop is None or _get_running_loop() in (None, self.loop))

    def run(self, connections: ThreadConnections) -> bool:
        """Serve the calls until nothing keeps the lease. Returns whether all of them succeeded."""
        self._runner = green.runner
        self._wake = self._runner or self._wake  # type: ignore[assignment]
        return super().run(connections)

    def _run(self, call: Any) -> bool:
        if call.loop is None:  # nothing says that it may run here: a tool may have put it together
            call.function = partial(apart, call.function)
        return super()._run(call)


class Wrappers:
    """Where Django keeps its wrappers by alias: a worker's go with it, wherever its lease runs.

    Elsewhere, and for code on an event loop, it is asgiref's Local, as ever.
    """

    _local: Any = connections._connections  # type: ignore[attr-defined] # noqa: SLF001

    def _here(self) -> Any:
        return getattr(_get_running_loop() is None and here.worker, "aliases", self._local)

    def __getattr__(self, alias: str) -> Any:
        return getattr(self._here(), alias)

    def __setattr__(self, alias: str, wrapper: Any) -> None:
        setattr(place := self._here(), alias, wrapper)
        if place is not self._local:  # it is used on whichever thread acts for the worker
            wrapper._thread_ident = here.worker  # noqa: SLF001 # so Django refuses every thread
            wrapper.validate_thread_sharing = partial(_validate_thread_sharing, wrapper)
            wrapper.connect = lambda: apart(type(wrapper).connect, wrapper)
            for name in ("on_commit", "run_and_clear_commit_hooks"):
                setattr(wrapper, name, partial(_do_at_commit, wrapper, name))

    def __delattr__(self, alias: str) -> None:
        delattr(self._here(), alias)


def _validate_thread_sharing(wrapper: Any) -> None:
    if here.worker is not wrapper._thread_ident:  # noqa: SLF001
        type(wrapper).validate_thread_sharing(wrapper)


def _do_at_commit(db: Any, name: str, *args: Any, **how: Any) -> Any:
    do = partial(getattr(type(db), name), db, *args, **how)
    # What was given to on_commit() is anybody's; outside of a block it is called at once.
    return apart(do) if not db.in_atomic_block and (args or how or db.run_on_commit) else do()


connections._connections = Wrappers()  # type: ignore[attr-defined] # noqa: SLF001
