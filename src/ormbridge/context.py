"""The leases of one context: of a request, or of a WebSocket connection (step 2 of a call).

:class:`~ormbridge.BridgeMiddleware` enters a :class:`LeaseContext`; all tasks of the request or
connection inherit it. Django's ``a``-methods, ``channels.db`` and everything else that asgiref
sends to its thread comes here through the public seam, ``ThreadSensitiveContext(executor=…)``, and
the calls of the bridge come here as well.

Guarantees:

* calls of a context that has a worker go to that worker: it never waits for a second one;
* a task that outlives its request or connection goes on, with a lease for each call;
* what needs no thread is answered at once.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from asgiref.sync import SyncToAsync

from .call import Call, watch
from .errors import BridgeError, PoolTimeout
from .frames import Ground
from .generators import find_generator, owner_of
from .lease import Lease
from .mailbox import mailbox_of
from .process import default_pool
from .threadless import answer, child_of, ends_or_starts_request
from .worker import Worker


class LeaseContext(Ground):
    """Where the calls of one context go: the executor that asgiref is given."""

    def __init__(self, name: str, holds: bool, waits_once: bool) -> None:
        """Make a context that has no worker.

        :param name: what it is, for error messages.
        :param holds: whether its first call begins a lease that is held to the end. Otherwise each
            call is a lease, which only what it leaves open keeps.
        :param waits_once: whether calls no longer wait once one has waited in vain.
        """
        super().__init__()
        self.name = name
        #: Whether a call of it was refused because no worker became free in time.
        self.timed_out = False
        self.ended = False
        #: Whether the last message of the response is out: what comes now is another request.
        self.answered = False
        self._holds = holds
        self._waits_once = waits_once
        self._lock = threading.RLock()
        # Guarded by _lock: leases that go on between calls, and others in the pool's line.
        self._leases: list[Lease] = []
        self._waiting: list[Lease] = []

    def submit(  # type: ignore[override] # run_in_executor takes an asyncio future as well
        self, job: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        """Run what asgiref submits. Runs on an event loop's thread.

        :raises PoolTimeout: if there is no worker, and waiting for one would deadlock or was in
            vain before.
        """
        loop = asyncio.get_running_loop()
        child = child_of(job)
        future: asyncio.Future[Any] | None = answer(child, loop) if child is not None else None
        if future is None:
            call = Call(job, child.func if child is not None else job, mailbox_of(loop))
            future = call.future = _CallFuture(call, loop)
            self.place(call, hold=child is None or not ends_or_starts_request(child))
        return future

    def place(self, call: Call, anywhere: bool = False, hold: bool = True) -> None:
        """Find a worker for *call*.

        :param anywhere: ``thread_sensitive=False``: prefer any free worker to that of the context.
        :param hold: whether the call may begin a lease that is held.
        :raises PoolTimeout: as :meth:`submit`.
        """
        pool = default_pool()
        find_generator(call)
        own = threading.current_thread()
        with self._lock:
            self._leases = [lease for lease in self._leases if not lease.over]
            # The newest first. A fork, or new settings, may have left leases of another pool.
            leases = [lease for lease in reversed(self._leases) if lease.pool is pool]
            if self.ended:
                leases = [lease for lease in leases if lease.is_of_current_task()]
            workers = [lease.worker for lease in leases if lease.worker is not None]
            if own in workers:
                call.place(pool, None, anywhere)
                return
            if anywhere and leases and pool.take(call, wait=False):
                return
            call.stays_out = anywhere
            hold = hold and self._holds and not (anywhere or self.ended)
            leases.sort(key=Lease.is_of_current_task, reverse=True)
            for lease in filter(None, [owner_of(call.generator, self), *leases]):
                if lease.submit(call, hold and lease.context is self):
                    return
            lease = Lease(self, pool, hold)
            lease.submit(call, hold)
            # Who holds a worker never waits for a second one.
            in_vain = self.timed_out and self._waits_once and not self.ended
            wait = not (in_vain or isinstance(own, Worker))
            if not pool.take(lease, wait=wait):
                if not wait:
                    raise PoolTimeout(pool.stats().shortage(0.0))
                watch(call.mailbox, pool)
                if not anywhere:
                    self._waiting = [each for each in self._waiting if each.waits()] + [lease]
            if hold:
                self._leases.append(lease)

    def keep(self, lease: Lease) -> None:
        """Send all calls to *lease*, which goes on after a call. Runs on its worker."""
        with self._lock:
            if lease not in self._leases:
                self._leases.append(lease)
            if self.ended:
                lease.end()
            waiting, self._waiting = self._waiting, []
        for call in itertools.chain.from_iterable(each.withdraw() for each in waiting):
            with suppress(RuntimeError):  # the loop is closed
                call.mailbox.loop.call_soon_threadsafe(self._place_again, call)

    def _place_again(self, call: Call) -> None:
        try:
            self.place(call)
        except BridgeError as error:
            call.refuse(error)

    def release(self, end: bool = False) -> None:
        """Give the workers back as soon as nothing runs and nothing is left open.

        :param end: the context ends: roll back what is left open, unless by a task that lives on.
            Later calls are leases of one call.
        """
        with self._lock:
            self.ended = self.ended or end
            for lease in self._leases:
                if end:
                    lease.end()
                else:
                    lease.release()
            self._leases = [lease for lease in self._leases if not lease.over]


class _CallFuture(asyncio.Future[Any]):
    """What asgiref awaits, and cancels when the awaiting task is cancelled."""

    def __init__(self, call: Call, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._call = call

    def cancel(self, msg: Any | None = None) -> bool:
        self._call.cancel()
        return super().cancel(msg)


def current_context() -> LeaseContext | None:
    """Return the context whose leases the calling task uses, or None."""
    context: Any = SyncToAsync.thread_sensitive_context.get(None)
    executor = getattr(context, "_executor", None)
    return executor if isinstance(executor, LeaseContext) else None
