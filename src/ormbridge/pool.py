"""The pool: at most ``MAX_THREADS`` workers, handed to leases first in, first out (step 3 of a call).

Guarantees:

* there are never more workers than the bound, and none is started while one is free;
* a free worker goes to the lease that has waited longest; of several free workers the one used last is taken, so
  that few connections stay warm and the others can retire after ``MAX_IDLE``;
* a lease that gave up (cancelled, timed out, refused) never takes a worker; one that has a worker keeps it until its
  thread is done, whatever became of the awaiting task;
* at interpreter exit running leases finish, waiting ones are refused, and every worker closes its connections.

One lock guards everything. It is held for a few dozen bytecodes, and never while calling anybody else's code.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from .errors import PoolClosed, PoolTimeout
from .settings import Settings, load_settings
from .worker import Leaseholder, Worker

# How many holders an error message names.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A snapshot of the pool. Counters run from the start of the process or the last change of settings."""

    #: The bound on workers.
    max_threads: int
    #: Workers that exist, and how many of them are free.
    threads: int
    idle: int
    #: Calls that wait for a worker now.
    waiting: int
    #: Calls that have run, and how many calls had to wait for a worker first.
    calls: int
    queued: int
    #: Seconds, summed over all calls: waiting for a worker, and having one.
    wait_seconds: float
    run_seconds: float
    #: Calls that failed with ``PoolTimeout``.
    timeouts: int
    #: Connections thrown away because a call left a transaction open or cleaning failed.
    discarded: int
    #: For each leased worker: its thread's name, what it runs, and for how many seconds.
    holders: tuple[tuple[str, str, float], ...]


class Pool:
    """A bounded pool of workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        # All of the following is guarded by _lock.
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []  # the one used last is at the end
        self._waiting: OrderedDict[Leaseholder, None] = OrderedDict()
        self._closed = False
        self._number = 0
        self._calls = self._queued = self._timeouts = self._discarded = 0
        self._wait_seconds = self._run_seconds = 0.0

    def take(self, lease: Leaseholder, wait: bool = True) -> bool:
        """Hand a free worker to *lease*, or put it in line.

        :returns: whether the lease has a worker. Without *wait*, a lease that has none is not in line.
        :raises PoolClosed: if the interpreter is exiting.
        """
        lease.asked = now = time.monotonic()
        with self._lock:
            if self._closed:
                raise PoolClosed("the pool is closed: the interpreter is exiting and takes no new calls")
            if self._idle:
                worker = self._idle.pop()
                started = True
            elif len(self._workers) < self.settings.max_threads:
                self._number += 1
                worker = Worker(self, self._number)
                self._workers.add(worker)
                started = False
            else:
                if wait:
                    self._waiting[lease] = None
                    self._queued += 1
                return False
            worker.lease = lease
            worker.since = now
        worker.wake.release()
        if not started:
            self._start(worker)
        return True

    def _start(self, worker: Worker) -> None:
        try:
            worker.start()
        except RuntimeError:  # the system has no thread left
            with self._lock:
                self._workers.discard(worker)
                lease = worker.lease
                if self._workers and lease is not None:
                    # Somebody will be free before long: be the next in line.
                    self._waiting[lease] = None
                    self._waiting.move_to_end(lease, last=False)
                    return
            raise

    def give_back(self, worker: Worker, ran: bool) -> Leaseholder | None:
        """Take *worker* back from its lease. Returns the next lease, or None: wait for a wake-up.

        :param ran: whether the lease was claimed, and so counts as a call.
        """
        now = time.monotonic()
        with self._lock:
            if ran:
                self._calls += 1
                self._run_seconds += now - worker.since
            if self._waiting:
                lease, _ = self._waiting.popitem(last=False)
                self._wait_seconds += now - lease.asked
                worker.lease = lease
                worker.since = now
                return lease
            worker.lease = None
            if self._closed:
                worker.wake.release()
            else:
                self._idle.append(worker)
            return None

    def retire(self, worker: Worker) -> bool:
        """Let *worker* end after ``MAX_IDLE`` seconds. Returns False if a lease is on its way to it."""
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            return True

    def ended(self, worker: Worker) -> None:
        """Forget *worker*, whose connections are closed."""
        with self._lock:
            self._workers.discard(worker)
            self._discarded += worker.connections.discarded

    def forget(self, lease: Leaseholder) -> None:
        """Take *lease*, which gave up, out of the line."""
        with self._lock:
            self._waiting.pop(lease, None)

    def expire(self) -> float | None:
        """Refuse the leases that have waited too long.

        :returns: seconds until the next one has, or None where none waits.
        """
        overdue: list[Leaseholder] = []
        left = None
        with self._lock:
            now = time.monotonic()
            # First in, first out, and one time-out for all: the oldest is always at the front.
            while self._waiting:
                lease = next(iter(self._waiting))
                left = lease.asked + self.settings.timeout - now
                if left > 0:
                    break
                del self._waiting[lease]
                overdue.append(lease)
                left = None
        for lease in overdue:
            if lease.refuse(self.timeout_error(now - lease.asked)):
                with self._lock:
                    self._timeouts += 1
        return left

    def timeout_error(self, waited: float) -> PoolTimeout:
        """Describe the pool to somebody who *waited* in vain, in seconds."""
        stats = self.stats()
        held = sorted(stats.holders, key=lambda holder: -holder[2])
        holders = ", ".join(f"{name} by {what} for {held:.1f} s" for name, what, held in held[:_NAMED])
        more = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
        return PoolTimeout(
            f"waited {waited:.1f} s for a worker, {len(held)} of {stats.max_threads} leased, "
            f"{stats.waiting} more waiting; held longest: {holders}{more}. Shorten what holds the workers, or "
            "raise ASGI_THREADS or settings.ORMBRIDGE['MAX_THREADS'] (mind the database's max_connections) "
            "or ['TIMEOUT']"
        )

    def stats(self) -> PoolStats:
        """Return a snapshot. May be called from any thread."""
        with self._lock:
            now = time.monotonic()
            return PoolStats(
                max_threads=self.settings.max_threads,
                threads=len(self._workers),
                idle=len(self._idle),
                waiting=len(self._waiting),
                calls=self._calls,
                queued=self._queued,
                wait_seconds=self._wait_seconds,
                run_seconds=self._run_seconds,
                timeouts=self._timeouts,
                discarded=self._discarded + sum(worker.connections.discarded for worker in self._workers),
                holders=tuple(
                    (worker.name, str(worker.lease), now - worker.since)
                    for worker in self._workers
                    if worker.lease is not None
                ),
            )

    def close(self, *, refuse: bool) -> None:
        """Take no new leases, and let every worker end as it becomes free.

        :param refuse: fail the leases that wait, and return when every worker has ended. Otherwise waiting leases are
            still served, and close returns at once.
        """
        with self._lock:
            self._closed = True
            waiting: list[Leaseholder] = []
            if refuse:
                waiting, self._waiting = list(self._waiting), OrderedDict()
            idle, self._idle = self._idle, []
            workers = list(self._workers)
        for lease in waiting:
            lease.refuse(PoolClosed("the interpreter is exiting; the call was waiting for a worker and did not run"))
        for worker in idle:
            worker.wake.release()
        if refuse:
            for worker in workers:
                worker.join()

    def disown(self) -> None:
        """Forget everything after a fork: the threads and the connections are the parent's."""
        for worker in self._workers:
            # Freeing a connection would say goodbye to the server in the parent's name (mysqlclient does), so
            # these live until the process ends, its finalization included.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(worker.connections.opened))
            worker.connections.opened = []


_pool: Pool | None = None
_pool_lock = threading.Lock()


def default_pool() -> Pool:
    """Return the pool of this process; it is made by the first call.

    :raises ImproperlyConfigured: if ``settings.ORMBRIDGE`` or ``ASGI_THREADS`` is not accepted.
    """
    global _pool
    if _pool is None:
        with _pool_lock:
            if _pool is None:
                _pool = Pool(load_settings())
    return _pool


def stats() -> PoolStats:
    """Return a snapshot of the pool of this process. May be called from any thread; blocks nobody."""
    return default_pool().stats()


def _close_at_exit() -> None:
    if _pool is not None:
        _pool.close(refuse=True)


def _reset_after_fork() -> None:
    global _pool, _pool_lock
    _pool_lock = threading.Lock()
    if _pool is not None:
        _pool.disown()
        _pool = None


def _reload(setting: str, **kwargs: object) -> None:
    # override_settings in a test: the next call meets a pool with the new settings.
    global _pool
    if setting == "ORMBRIDGE" and _pool is not None:
        _pool.close(refuse=False)
        _pool = None


# As concurrent.futures does: before the interpreter waits for threads that are not daemons. atexit would be too late.
threading._register_atexit(_close_at_exit)  # type: ignore[attr-defined]
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_reset_after_fork)
setting_changed.connect(_reload, dispatch_uid="ormbridge.pool")
if django_settings.configured:
    load_settings()  # better to fail here than at the first call
