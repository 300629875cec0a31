"""The pool: at most ``MAX_THREADS`` workers, first in, first out (step 3 of a call).

Guarantees:

* there are never more workers than the bound, and none is started while one is free;
* a free worker goes to the lease that has waited longest; of several free workers the one used last
  is taken, so that few connections stay warm and the others can retire after ``MAX_IDLE``;
* few hands come first, because threads that run Python share one lock: while leases wait, FEW
  workers run to begin with, and more as long as the process leaves a processor idle, or none is
  done for STALL seconds;
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
from .errors import PoolClosed, PoolTimeout
from .mailbox import LOOK
from .settings import Settings, import_reset
from .stats import PoolStats
from .worker import Leaseholder, Worker

#: Workers that begin at one time.
FEW = 3
#: Seconds after which all may run where no worker is done with its lease, or a call of that.
STALL = 0.005
# Of one processor, what the process uses: below the first, one worker more may run, above the
# second one fewer.
SLACK, BUSY = 0.75, 0.9
# The weight of the last look in what the process uses.
FRESH = 0.2
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
        self._hands = FEW  # workers that may run, not counting those that are kept
        self._kept = 0  # workers that leases keep between calls
        self._looked = self._used = 0.0  # the last look, and the seconds of CPU used by then
        self._busy = 1.0  # how much of a processor that was lately
        self._moved = 0.0  # when a worker last was done with a lease, or with a call of one
        self._closed = False
        self._number = 0
        self._calls = self._queued = self._timeouts = self._discarded = 0
        self._wait_seconds = self._run_seconds = 0.0

    def take(self, lease: Leaseholder, wait: bool = True) -> bool:
        """Give *lease* a worker, if nobody waits and one more may run, or put it in line.

        :returns: whether the lease has a worker, or its error: the system may refuse to start the
            first thread. Without *wait*, a lease that has neither is not in line.
        :raises PoolClosed: if the interpreter is exiting.
        """
        lease.asked = now = time.monotonic()
        with self._lock:
            if self._closed:
                what = f"{lease} came too late: the interpreter exits, no calls are taken [exiting]"
                raise PoolClosed(what)
            # Who is in line may only wait for its turn to run.
            hands = self._hands if wait else self.settings.max_threads
            worker = None if wait and self._waiting else self._free_or_new(hands)
            if worker is not None:
                worker.lease, worker.since = lease, now
            elif wait:
                if not self._waiting:
                    self._looked, self._used, self._moved = now, time.process_time(), now
                self._waiting[lease] = None
                self._queued += 1
        if worker is None:
            return False
        if self._wake(worker):
            return True
        return not wait and not self.forget(lease)  # unless another worker has it by now

    def _free_or_new(self, hands: int) -> Worker | None:
        """Return a worker that is free, or new, if one more of *hands* may run."""
        if self._running() >= hands:
            return None
        if self._idle:
            return self._idle.pop()
        if len(self._workers) >= self.settings.max_threads:
            return None
        self._number += 1
        worker = Worker(self, self._number)
        self._workers.add(worker)
        return worker

    def has_long_line(self) -> bool:
        """Say whether at least as many leases wait as workers may run."""
        return len(self._waiting) >= self._hands

    def _running(self) -> int:
        return len(self._workers) - len(self._idle) - self._kept

    def look(self) -> bool:
        """Let more workers run where the interpreter is idle, and fewer where it is not.

        Called by each loop every LOOK seconds, from the moment that one of its calls waits.

        :returns: whether to look again: somebody waits, or more than FEW run.
        """
        now, used, most = time.monotonic(), time.process_time(), self.settings.max_threads
        with self._lock:
            passed = now - self._looked
            if passed > LOOK / 2:  # other loops look, too
                busy = (used - self._used) / passed
                self._busy += FRESH * (busy - self._busy)
                stands = self._moved <= self._looked  # nobody was done since
                if now - self._moved > STALL or (stands and busy < SLACK):
                    self._hands = most
                elif self._busy < SLACK:
                    self._hands = min(self._hands + 1, most)
                elif self._busy > BUSY and self._hands > FEW:
                    self._hands -= 1
                self._looked, self._used = now, used
            again = bool(self._waiting) or self._running() > FEW
            if not again:
                self._hands, self._busy = FEW, 1.0
        while (worker := self._next()) is not None and self._wake(worker):
            pass
        return again

    def _next(self) -> Worker | None:
        with self._lock:
            worker = self._free_or_new(self._hands) if self._waiting else None
            if worker is not None:
                self._serve_first(worker, time.monotonic())
            return worker

    def _wake(self, worker: Worker) -> bool:
        """Set *worker* to work. False if the system refuses its thread, and its lease waits."""
        worker.wake.release()
        if worker.ident is None:
            try:
                worker.start()
            except Exception as error:  # no thread, or no memory, is left
                return self._do_without(worker, error.with_traceback(None))
        return True

    def _do_without(self, worker: Worker, reason: Exception) -> bool:
        """Make do with the other workers; where there is none, refuse who is in line.

        :returns: whether there is none.
        """
        with self._lock:
            self._workers.discard(worker)
            if worker.lease is not None:
                self._waiting[worker.lease] = None
                self._waiting.move_to_end(worker.lease, last=False)
            if self._workers:  # the next look finds one that became free, or asks the system again
                return False
            waiting, self._waiting = list(self._waiting), OrderedDict()
            self._timeouts += len(waiting)
        for lease in waiting:
            error = PoolTimeout(
                f"no thread could be started ({reason}), and the pool has none: 0 of "
                f"{self.settings.max_threads} workers exist. The limit of this user or container "
                "on threads and processes is reached: raise it (ulimit -u, the pids of the "
                "container), or lower ASGI_THREADS or settings.ORMBRIDGE['MAX_THREADS'] "
                "[no-thread]"
            )
            error.__cause__ = reason
            lease.refuse(error)
        return True

    def keep(self, worker: Worker) -> None:
        """Note that the lease of *worker* keeps it between calls. Runs on the worker."""
        if not worker.kept:
            with self._lock:
                worker.kept = True
                self._kept += 1
                self._moved = time.monotonic()
            if (other := self._next()) is not None:
                self._wake(other)

    def give_back(self, worker: Worker) -> Leaseholder | None:
        """Take *worker* back from its lease. Returns the next lease, or None: wait."""
        with self._lock:
            self._moved = now = time.monotonic()
            if worker.lease is not None:
                self._calls += worker.lease.calls
                self._run_seconds += now - worker.since
            self._kept -= worker.kept
            worker.kept = False
            if self._waiting and self._running() <= self._hands:
                return self._serve_first(worker, now)
            worker.lease = None
            if self._closed:
                worker.wake.release()
            else:
                self._idle.append(worker)
            return None

    def _serve_first(self, worker: Worker, now: float) -> Leaseholder:
        lease, _ = self._waiting.popitem(last=False)
        self._wait_seconds += now - lease.asked
        worker.lease, worker.since = lease, now
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

    def forget(self, lease: Leaseholder) -> bool:
        """Take *lease*, which gave up, out of the line. Returns whether it was there."""
        with self._lock:
            return self._waiting.pop(lease, self) is None  # as for all that are in it

    def time_out(self, call: Leaseholder, seen: dict[object, PoolStats]) -> PoolTimeout:
        """Count *call*, which has waited for a worker for too long. Returns its error.

        :param seen: snapshots of pools, for all that time out at once.
        """
        with self._lock:
            self._timeouts += 1
            workers = [] if self in seen else list(self._workers)
        for worker in workers:
            worker.connections.cut()
        snapshot = seen.get(self) or seen.setdefault(self, self.stats())
        return PoolTimeout(snapshot.shortage(time.monotonic() - call.asked))

    def stats(self) -> PoolStats:
        """Return a snapshot. May be called from any thread."""
        with self._lock:
            now = time.monotonic()
            busy = [(worker.name, worker.lease, now - worker.since) for worker in self._workers]
            snapshot = partial(
                PoolStats,
                max_threads=self.settings.max_threads,
                threads=len(self._workers),
                idle=len(self._idle),
                waiting=len(self._waiting),
                calls=self._calls + sum(lease.calls for _, lease, _ in busy if lease),
                queued=self._queued,
                wait_seconds=self._wait_seconds,
                run_seconds=self._run_seconds,
                timeouts=self._timeouts,
                discarded=self._discarded
                + sum(each.connections.discarded for each in self._workers),
            )
        # Naming a lease calls the user's code, which may come back here: outside the lock.
        holders = tuple(
            (name, str(lease), since) for name, lease, since in busy if lease is not None
        )
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
            leases = [worker.lease for worker in workers if worker.lease is not None]
        exiting = "the interpreter exits; the call waited for a worker and did not run [exiting]"
        for lease in waiting:
            lease.refuse(PoolClosed(exiting))
        for worker in idle:
            worker.wake.release()
        if refuse:
            for lease in leases:
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
