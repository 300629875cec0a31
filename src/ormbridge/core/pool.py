"""The pool: at most ``MAX_THREADS`` workers, first in, first out (step 3 of a call).

Guarantees:

* there are never more workers than the bound, and none is started while one is free;
* a free worker goes to the lease that has waited longest; of several free workers the one used last
  is taken, so that few connections stay warm and the others can retire after ``MAX_IDLE``;
* where the system refuses to start a thread, leases wait for the other workers; where there is no
  other, all in line are refused at once, each with an error of its own, and the next one tries
  again;
* a lease that gave up (cancelled, timed out, refused) never takes a worker; one that has a worker
  keeps it until its thread is done, whatever became of the awaiting task;
* at interpreter exit running leases finish, waiting ones are refused, and every worker closes its
  connections.

One lock guards everything. It is held for a few dozen bytecodes, and never while calling anybody
else's code. It is re-entrant, so that a signal handler may ask for stats() while its thread has it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from functools import partial

from .connections import ThreadConnections
from .crew import Crew
from .errors import PoolClosed, PoolTimeout
from .settings import Settings, import_reset
from .stats import PoolStats
from .worker import Leaseholder, Worker

# Seconds between two looks at a worker that is to end, and may wait for a server in vain.
_GLANCE = 0.1


class Pool:
    """A bounded pool of workers."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: Called on the worker with each open connection (Django's wrapper) as a lease ends.
        self.reset = import_reset(settings.reset)
        self._lock = threading.RLock()
        # All of the following is guarded by _lock.
        self._workers: set[Worker] = set()
        self._idle: list[Worker] = []  # the one used last is at the end
        self._waiting: OrderedDict[Leaseholder, None] = OrderedDict()
        self._crew = Crew(settings.max_threads)
        self._closed = False
        self._number = 0
        self._held = 0  # workers that leases keep between calls
        self._calls = self._queued = self._timeouts = self._discarded = 0
        self._wait_seconds = self._run_seconds = 0.0

    def take(self, lease: Leaseholder, wait: bool = True) -> bool:
        """Put *lease* in line, and hand a free worker to whoever is first there.

        :returns: whether the lease has a worker, or its error: the system may refuse to start the
            first thread. Without *wait*, a lease that has neither is not in line.
        :raises PoolClosed: if the interpreter is exiting.
        """
        lease.asked = now = time.monotonic()
        with self._lock:
            if self._closed:
                what = f"{lease} came too late: the interpreter exits, no calls are taken"
                raise PoolClosed(what)
            self._waiting[lease] = None
            worker = self._next_worker(now)
            waits = lease in self._waiting
            if waits and wait:
                self._queued += 1
            elif waits:
                del self._waiting[lease]
        return (worker is None or self._wake(worker, None if wait else lease)) and not waits

    def _next_worker(self, now: float) -> Worker | None:
        """Give the first in line a worker, if there may be one more: the one to wake."""
        running = len(self._workers) - len(self._idle)
        if not self._waiting or running >= self._may_run():
            return None
        if self._idle:
            worker = self._idle.pop()
        else:
            self._number += 1
            worker = Worker(self, self._number)
            self._workers.add(worker)
        self._serve_first(worker, now)
        return worker

    def _may_run(self) -> int:
        # Nobody knows when a worker that is kept between calls runs again: no crew then.
        crew = self._crew.size if self.has_long_line() and not self._held else None
        return crew or self.settings.max_threads

    def has_long_line(self) -> bool:
        """Say whether at least as many leases wait as there may be workers."""
        return len(self._waiting) >= self.settings.max_threads

    def _wake(self, worker: Worker | None, out: Leaseholder | None) -> bool:
        """Set *worker* to work. Returns False if its lease got none, and waits or is *out*."""
        first = worker
        while worker is not None:
            worker.wake.release()
            if worker.ident is not None:
                break
            try:
                worker.start()
            except Exception as error:  # no thread, or no memory, is left
                refused = self._do_without(worker, out, error.with_traceback(None))
                return refused or worker is not first
            with self._lock:  # for those in line whose worker could not start before
                worker = self._next_worker(time.monotonic())
        return True

    def _do_without(self, worker: Worker, out: Leaseholder | None, reason: Exception) -> bool:
        """Make do with the other workers; where there is none, refuse who is in line.

        :returns: whether there is none.
        """
        with self._lock:
            self._workers.discard(worker)
            if worker.lease is not None and not (self._workers and worker.lease is out):
                self._waiting[worker.lease] = None
                self._waiting.move_to_end(worker.lease, last=False)
            if self._workers:  # another thread may be about to start one, or one became free
                self._rouse(time.monotonic())
                return False
            waiting, self._waiting = list(self._waiting), OrderedDict()
            self._timeouts += len(waiting)
        for lease in waiting:
            error = PoolTimeout(
                f"no thread could be started ({reason}), and the pool has none: 0 of "
                f"{self.settings.max_threads} workers exist. The limit of this user or container "
                "on threads and processes is reached: raise it (ulimit -u, the pids of the "
                "container), or lower ASGI_THREADS or settings.ORMBRIDGE['MAX_THREADS']"
            )
            error.__cause__ = reason
            lease.refuse(error)
        return True

    def _rouse(self, now: float) -> None:
        """Hand free workers to those in line, as far as these may run."""
        while self._idle and (worker := self._next_worker(now)) is not None:
            worker.wake.release()

    def all_hands(self) -> None:
        """Let every worker run: no call has finished for a while, and the line is long."""
        with self._lock:
            self._crew.all_hands()
            self._rouse(time.monotonic())

    def hold(self, worker: Worker) -> None:
        """Note that the lease of *worker* keeps it between calls. Runs on the worker."""
        if not worker.held:
            worker.held = True
            with self._lock:
                self._held += 1
                self._rouse(time.monotonic())

    def give_back(self, worker: Worker, ran: bool) -> Leaseholder | None:
        """Take *worker* back from its lease. Returns the next lease, or None: wait for a wake-up.

        :param ran: whether the lease was claimed, and so counts as a call.
        """
        now = time.monotonic()
        with self._lock:
            if ran and worker.lease is not None:
                self._calls += worker.lease.calls
                self._run_seconds += now - worker.since
                self._held -= worker.held
                self._crew.call_done(now, self.has_long_line() and not self._held)
            worker.held = False
            running = len(self._workers) - len(self._idle)
            # Only who has an outcome to post may rest: the mailbox sees to it that not all do.
            if self._waiting and (running <= self._may_run() or not ran):
                lease = self._serve_first(worker, now)
                self._rouse(now)  # the crew may have grown, or the line have become short
                return lease
            worker.lease = None
            if self._closed:
                worker.wake.release()
            else:
                self._idle.append(worker)
            return None

    def _serve_first(self, worker: Worker, now: float) -> Leaseholder:
        lease, _ = self._waiting.popitem(last=False)
        self._wait_seconds += now - lease.asked
        worker.lease = lease
        worker.since = now
        return lease

    def retire(self, worker: Worker) -> bool:
        """Let *worker* go, idle for ``MAX_IDLE`` seconds. False if a lease is on its way to it."""
        with self._lock:
            if worker not in self._idle:
                return False
            self._idle.remove(worker)
            return True

    def leave(self, worker: Worker) -> Leaseholder | None:
        """Forget *worker*, whose connections are closed; or keep it for the lease it returns.

        Until here it counts towards the bound, so a lease may have come into line meanwhile.
        """
        with self._lock:
            if self._waiting:
                return self._serve_first(worker, time.monotonic())
            self._workers.discard(worker)
            self._discarded += worker.connections.discarded
            return None

    def forget(self, lease: Leaseholder) -> None:
        """Take *lease*, which gave up, out of the line."""
        with self._lock:
            self._waiting.pop(lease, None)
            self._rouse(time.monotonic())

    def time_out(self, call: Leaseholder, seen: dict[object, PoolStats]) -> PoolTimeout:
        """Count *call*, which has waited for a worker for too long. Returns its error.

        :param seen: snapshots of pools, for all that time out at once.
        """
        with self._lock:
            self._timeouts += 1
            for worker in self._workers if self not in seen else ():
                worker.connections.cut()
        snapshot = seen.get(self) or seen.setdefault(self, self.stats())
        return PoolTimeout(snapshot.shortage(time.monotonic() - call.asked))

    def stats(self) -> PoolStats:
        """Return a snapshot. May be called from any thread."""
        with self._lock:
            now = time.monotonic()
            held = [(worker.name, worker.lease, now - worker.since) for worker in self._workers]
            snapshot = partial(
                PoolStats,
                max_threads=self.settings.max_threads,
                threads=len(self._workers),
                idle=len(self._idle),
                waiting=len(self._waiting),
                calls=self._calls + sum(lease.calls for _, lease, _ in held if lease),
                queued=self._queued,
                wait_seconds=self._wait_seconds,
                run_seconds=self._run_seconds,
                timeouts=self._timeouts,
                discarded=self._discarded
                + sum(each.connections.discarded for each in self._workers),
            )
        # Naming a lease calls the user's code, which may come back here: outside the lock.
        holders = tuple((name, str(lease), held) for name, lease, held in held if lease is not None)
        return snapshot(holders=holders)

    def leases(self) -> list[tuple[Worker, Leaseholder]]:
        """Return the leases that have a worker, with it. May be called from any thread."""
        with self._lock:
            workers = sorted(self._workers, key=lambda worker: worker.since)
            return [(worker, worker.lease) for worker in workers if worker.lease is not None]

    def close(self, *, refuse: bool, patience: float | None = None) -> None:
        """Take no new leases, and let every worker end as it becomes free.

        :param refuse: fail the leases that wait, and return when every worker has ended. Otherwise
            waiting leases are still served, and close returns at once.
        :param patience: seconds to wait for a worker to end, at the most.
        """
        with self._lock:
            self._closed = True
            waiting: list[Leaseholder] = []
            if refuse:
                waiting, self._waiting = list(self._waiting), OrderedDict()
            idle, self._idle = self._idle, []
            workers = list(self._workers)
            held = [worker.lease for worker in workers if worker.lease is not None]
        exiting = "the interpreter is exiting; the call was waiting for a worker and did not run"
        for lease in waiting:
            lease.refuse(PoolClosed(exiting))
        for worker in idle:
            worker.wake.release()
        if refuse:
            for lease in held:
                lease.dismiss(PoolClosed(exiting))
            deadline = time.monotonic() + ThreadConnections.BOUND
            for worker in filter(Worker.is_alive, workers):  # others may be about to start
                while patience is None and worker.is_alive():
                    worker.join(max(deadline - time.monotonic(), _GLANCE))
                    worker.connections.cut()
                worker.join(patience)

    def disown(self) -> None:
        """Forget everything after a fork: the threads and the connections are the parent's."""
        import ctypes  # dear, and seldom needed

        for worker in self._workers:
            # Freeing a connection would say goodbye to the server in the parent's name (mysqlclient
            # does), so these live until the process ends, its finalization included.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(worker.connections.opened))
            worker.connections.opened = []
            # The child may go on in the middle of a call, while the parent's canceller had this.
            worker.connections.finishing = threading.RLock()
