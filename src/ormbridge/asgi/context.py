"""The leases of one context: of a request, or of a WebSocket connection (step 2 of a call).

:class:`~ormbridge.BridgeMiddleware` enters a :class:`LeaseContext`; all tasks of the request or
connection inherit it. The calls of the bridge come here, and what asgiref is asked to run
(``sync_to_async.py``).

Guarantees:

* calls of a context that has a worker go to that worker: it never waits for a second one;
* a task that outlives its request or connection goes on, with a lease for each call.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from django.db import connections
from django.db.models import QuerySet

from ..core import route as routes
from ..core.call import Call
from ..core.errors import BridgeError, LeaseClosed, PoolTimeout, logger
from ..core.pool import Pool
from ..core.process import default_pool
from ..core.worker import current
from ..leases.generators import owner_of
from ..leases.lease import Lease, LeaseRoute
from ..leases.turns import outwards
from .threadless import needs_thread

# What QuerySet reads by, behind its a-methods and ``async for``.
_READS = (
    *("contains", "count", "earliest", "exists", "explain", "first", "get", "in_bulk", "last"),
    *("latest", "_fetch_all"),
)


class LeaseContext(LeaseRoute):
    """Where the calls of one context go."""

    #: What its leases are that are held, or run on their loop's thread; a wing may have others.
    lease_type = Lease
    # Whether blocks go on with what any task has left open here, and not the running one alone.
    _is_of_all_tasks = False

    def __init__(self, name: str, holds: bool, is_request: bool = False) -> None:
        """Make a context that has no worker.

        :param name: what it is, for error messages.
        :param holds: whether its first call begins a lease that is held to the end. Otherwise each
            call is a lease, which only what it leaves open keeps.
        :param is_request: whether calls no longer wait once one has waited in vain, and a call that
            leaves nothing behind begins nothing that is held.
        """
        self.name, self.ended, self.timed_out = name, False, set()
        #: Whether the last message of the response is out: what comes now is another request.
        self.answered = False
        #: Whether the body of the response is there already: it has a length, and nothing was
        #: called since it started. None before that.
        self.ready: bool | None = None
        self._holds, self._is_request = holds, is_request
        self._lock = threading.RLock()
        # Guarded by _lock: leases that go on between calls, and others that had to get in the
        # pool's line, in that order.
        self._leases: list[Lease] = []
        self._waiting: WeakKeyDictionary[Lease, None] = WeakKeyDictionary()
        self._reads: set[Call] = set()  # calls that are no lease's; on the loop's thread only

    async def do_without(self, call: Call, parts: list[Any]) -> Any:
        """Run *call*, which starts or ends a request; where no worker becomes free, log it.

        :param parts: what it calls. Each would have run, or each has this :exc:`PoolTimeout`.
        """
        try:
            self.place(call, hold=False)
            return await call.future  # type: ignore[misc] # it has not been delivered
        except PoolTimeout as error:
            missed = [getattr(each, "__qualname__", each) for each in filter(needs_thread, parts)]
            logger.error("%s goes on without %s: %s", self.name, missed, error)
            return [(each, error) for each in parts]

    def place(self, call: Call, hold: bool = True) -> None:
        """Find a worker for *call*.

        :param hold: whether the call may begin a lease that is held.
        :raises PoolTimeout: if there is no worker, and waiting for one would deadlock or was in
            vain before.
        """
        pool, owner, own = default_pool(), owner_of(call), current()
        self.ready = self.ready and call.name is list  # so Django reads a file before it sends it
        with self._lock:
            self._leases = [lease for lease in self._leases if not lease.over]
            # The newest first. A fork, or new settings, may have left leases of another pool.
            leases = [lease for lease in reversed(self._leases) if lease.pool is pool]
            if self.ended:
                leases = [lease for lease in leases if lease.has_something_of_current_task()]
            bound = _lease_of(call.route)
            if own in [lease.thread for lease in leases]:
                refuse_inside(call.route, call)
                call.place(pool)
                return
            reads = self._is_request and not self.ended and call.route is self
            is_read = reads and leaves_nothing(call, pool)
            hold = hold and self._holds and not (call.stays_out or self.ended or is_read)
            leases.sort(key=Lease.has_something_of_current_task, reverse=True)
            if owner is not None and owner.context is not self and owner.context.ended:
                owner = None
            for lease in filter(None, [owner, bound, *leases]):
                if lease.put(call, hold and lease.context is self):
                    return
                if lease is bound and not call.stays_out:
                    where = f"{call} was called in {call.route}"
                    raise LeaseClosed(f"{where}, whose worker is gone [block-ended]")
            if is_read and True not in self.timed_out:
                # What comes later, and may be held, is behind it in the line.
                call.name = f"{self.name}, in {call}"
                self._reads.add(call)
                call.future.add_done_callback(partial(self._has_read, call))  # type: ignore[union-attr]
                call.place(pool)
            else:
                self._begin_lease(call, pool, hold)

    def _begin_lease(self, call: Call, pool: Pool, hold: bool) -> None:
        """Have a new lease ask *pool* for a worker for *call*. The lock is held."""
        lease_type = self.lease_type if hold or call.loop is not None else Lease
        lease = lease_type(self, pool)
        if any(each.connections is None for each in list(self._reads)):
            lease.loop = None  # on a thread, it does not pass the line, and so those reads
        lease.put(call, hold)
        in_vain = self._is_request and not self.ended and True in self.timed_out
        if hold:  # before it begins, which may be here: what it runs may start a loop and call
            self._leases.append(lease)
        if call.place(pool, lease, patient=not in_vain) and not call.stays_out:
            self._waiting[lease] = None

    def _has_read(self, call: Call, outcome: Any) -> None:
        self._reads.discard(call)
        self.timed_out.add(not outcome.cancelled() and isinstance(outcome.exception(), PoolTimeout))

    def for_block(self, name: str) -> LeaseContext:
        """Return the context whose calls the block *name*, around the running code, has to itself.

        That is this one if it holds its worker: a request's calls stay together. Otherwise it is a
        new one, and neighbours have workers of their own. Nobody waits for a second worker: what
        the running task has left open here goes on there, and so does a task that may be awaited in
        the body of an iteration here.

        :raises PoolTimeout: on an event loop that was started on the worker of a block around it.
        """
        with self._lock:
            leases = [lease for lease in self._leases if not lease.over]
            below = current() in [lease.thread for lease in leases]
            if self._holds and not (self.ended or below):
                return self
            context = LeaseContext(name, holds=True)
            if below:
                refuse_inside(routes.current_route.get(), name)
            else:
                mine = Lease.has_something_of_current_task
                if not self._is_of_all_tasks:  # not in the transaction of another one
                    leases = [x for x in leases if mine(x) or not (self.ended or x.transaction)]
                context._leases, context.timed_out = leases, self.timed_out
            return context

    def keep(self, lease: Lease) -> None:
        """Send all calls to *lease*, which goes on after a call. Runs on its worker."""
        with self._lock:
            if lease not in self._leases:
                self._leases.append(lease)
            if self.ended:
                lease.release(end=True)
            waiting, self._waiting = self._waiting, WeakKeyDictionary()
        for each in waiting:
            for call in each.withdraw():
                call.mailbox.post(partial(self._place_again, call))

    def _place_again(self, call: Call) -> None:
        """Send *call* to the lease that goes on now. On its loop's thread."""
        try:
            self.place(call)
        except BridgeError as error:
            call.refuse(error)

    def forget(self, lease: Lease) -> None:
        """Let go of *lease*, which is over. Runs on its worker."""
        with self._lock:
            self._leases = [each for each in self._leases if each is not lease]

    def release(self, end: bool = False) -> None:
        """Give the workers back as soon as nothing runs and nothing is left open.

        :param end: the context ends: roll back what is left open, unless by a task that lives on.
            Later calls are leases of one call.
        """
        with self._lock:
            self.ended = self.ended or end
            for lease in [each for each in self._leases if each.context is self]:
                lease.release(end)


def leaves_nothing(call: Call, pool: Pool) -> bool:
    """Say whether *call* is a read of Django's, and what it does on its worker ends with it.

    Not if a connection does, or is anybody's but Django's, or ``RESET`` says that there is state. A
    query with expressions may call functions of the server, such as ``set_config()``.
    """
    name, rows = getattr(call.name, "__name__", None), getattr(call.name, "__self__", None)
    may = pool.settings.http_lease == "auto" and pool.reset is None and name in _READS
    if not (may and isinstance(rows, QuerySet)):
        return False
    query, prefetched = rows.query, rows._prefetch_related_lookups  # type: ignore[attr-defined] # noqa: SLF001
    named = all(type(each) is str for each in (*query.order_by, *prefetched))
    if query.annotations or query.extra or not named:
        return False
    for db in connections.settings.values():
        if db["CONN_MAX_AGE"] == 0 or not (db["AUTOCOMMIT"] and db["ENGINE"].startswith("django.")):
            return False
    return all(getattr(type(rows), each) is getattr(QuerySet, each) for each in _READS)


def refuse_inside(route: object, caller: object) -> None:
    """Refuse *caller*, on an event loop on a worker, if that worker has the block of *route*.

    :raises PoolTimeout: if so. To run elsewhere would be to run outside of the block.
    """
    lease, own = _lease_of(route), current()
    if lease is not None and lease.thread is own:
        raise PoolTimeout(
            f"{caller} is called from an event loop started on {own.name}, which has "
            f"{route}; elsewhere it would not be in that block. Use async_to_sync in place of "
            "asyncio.run [loop-on-worker]"
        )


def _lease_of(route: object) -> Lease | None:
    """Return the lease that has the block *route*, or the next one around it."""
    return next((each.lease for each in outwards(route) if each.lease is not None), None)
