"""The pool: at most ``MAX_THREADS`` workers, first in, first out (step 3 of a call).

Guarantees:

* there are never more workers than the bound, and none is started while one is free;
* a worker that may run goes to the lease that has waited longest, but for one that may not wait,
  or runs elsewhere; of several free workers the one used last is taken, so that few connections
  stay warm and the others can retire after ``MAX_IDLE``;
* while leases wait, no more workers run than :mod:`.hands` says;
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
from dataclasses import replace
from itertools import count

from . import hooks
from .errors import PoolClosed, PoolTimeout
from .hands import FEW, Hands
from .settings import Settings, import_reset
from .stats import PoolStats, no_thread
from .worker import Leaseholder, Worker


class Pool:
    """A bounded pool of workers."""

    #: What its workers are; a wing may have others.
    worker_type: type[Worker] = Worker
    #: Whether it takes no more leases. At exit it is the class that says so, for all of them.
    closed = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        #: What RESET names, for :meth:`.ThreadConnections.lease_ends`; or None.
        self.reset = import_reset(settings.reset)
        self._lock = threading.RLock()
        # All of the following is guarded by _lock.
        #: Those that exist. Others look at a copy: to make one takes no lock.
        self.workers: set[Worker] = set()
        self._idle: dict[Worker, None] = {}  # the one used last is at the end
        self._waiting: OrderedDict[Leaseholder, None] = OrderedDict()
        self._hands = Hands()
        #: Those that leases keep between calls, or that run elsewhere.
        self.kept: set[Worker] = set()
        self._numbers = count(1)
        self._calls = self._queued = self._timeouts = self._discarded = 0
        self._wait_seconds = self._run_seconds = 0.0

    def take(self, lease: Leaseholder, wait: bool = True) -> bool:
        """Give *lease* a worker, if nobody waits and one more may run, or put it in line.

        Without *wait* it may have any worker that is free or may exist, past the line and the
        hands. So may one that runs on its loop's thread.

        :returns: whether the lease has a worker, or its error: the system may refuse to start the
            first thread. Without *wait*, a lease that has neither is not in line.
        :raises PoolClosed: if the interpreter is exiting.
        """
        lease.asked = now = time.monotonic()
        with self._lock:
            if self.closed:
                what = f"{lease} came too late: the interpreter exits, no calls are taken [exiting]"
                raise PoolClosed(what)
            # Who is in line may only wait for its turn to run.
            no_hand = self._waiting or self._running() >= self._hands.count
            worker = None if wait and lease.loop is None and no_hand else self._free_or_new()
            if worker is None:
                if wait:
                    if not self._waiting:
                        self._hands.begin(now)
                    self._waiting[lease] = None
                    self._queued += 1
                return False
            self._assign(worker, now, lease)
        # Where it is in line after all, another worker may have it by now.
        return self.wake(worker, lease) or (not wait and not self.forget(lease))

    def _free_or_new(self) -> Worker | None:
        """Return a worker that is free, or new, if there may be one more."""
        if self._idle:
            return self._idle.popitem()[0]
        if len(self.workers) >= self.settings.max_threads:
            return None
        worker = self.worker_type(self, next(self._numbers))
        self.workers.add(worker)
        return worker

    def has_long_line(self) -> bool:
        """Say whether at least as many leases wait as workers may run."""
        return len(self._waiting) >= self._hands.count

    def _running(self) -> int:
        """Return how many are hands: not idle, nor kept between calls, nor run elsewhere."""
        return len(self.workers) - len(self._idle) - len(self.kept)

    def look(self) -> bool:
        """See how many workers may run now, and have so many begin.

        Called by each loop every LOOK seconds, from the moment that one of its calls waits.

        :returns: whether to look again: somebody waits, or more than FEW run.
        """
        with self._lock:
            self._hands.look(self.settings.max_threads)
            again = bool(self._waiting) or self._running() > FEW
            if not again:
                self._hands = Hands()
        while self._begin_next():
            pass
        return again

    def _begin_next(self) -> bool:
        """Have one more worker begin, for who waits longest. False if none may, or can."""
        with self._lock:
            may_run = self._waiting and self._running() < self._hands.count
            worker = self._free_or_new() if may_run else None
            if worker is None:
                return False
            lease = self._assign(worker, time.monotonic())
        return self.wake(worker, lease)

    def wake(self, worker: Worker, lease: Leaseholder) -> bool:
        """Set *worker* to work for *lease*. False if the system has no thread, and that waits."""
        if lease.loop is not None and hooks.begin(worker, lease):
            return True
        worker.wake.release()
        if worker.ident is None:
            try:
                worker.start()
            except Exception as error:  # no thread, or no memory, is left
                return self._do_without(worker, lease, error.with_traceback(None))
        return True

    def _do_without(self, worker: Worker, lease: Leaseholder, reason: Exception) -> bool:
        """Make do with other workers for *lease*; where there is none, refuse who is in line.

        :returns: whether there is none.
        """
        with self._lock:
            self.workers.discard(worker)
            self.kept.discard(worker)
            self._waiting[lease] = None
            self._waiting.move_to_end(lease, last=False)
            if self.workers:  # the next look finds one that became free, or asks the system again
                return False
            waiting, self._waiting = list(self._waiting), OrderedDict()
            self._timeouts += len(waiting)
        for lease in waiting:
            lease.refuse(no_thread(reason, self.stats()))
        return True

    def keep(self, worker: Worker) -> None:
        """Note that the lease of *worker* keeps it between calls."""
        if worker not in self.kept:
            with self._lock:
                self.kept.add(worker)
                self._hands.moved = time.monotonic()
            self._begin_next()

    def give_back(self, worker: Worker) -> Leaseholder | None:
        """Take *worker* back from its lease. Returns the next lease, or None: wait."""
        with self._lock:
            self._hands.moved = now = time.monotonic()
            self._calls += worker.lease.calls  # type: ignore[union-attr] # it has one
            self._wait_seconds += worker.since - worker.lease.asked  # type: ignore[union-attr]
            self._run_seconds += now - worker.since
            self.kept.discard(worker)
            hand = self._running() <= self._hands.count
            if self._waiting and (hand or next(iter(self._waiting)).loop is not None):
                return self._assign(worker, now)
            worker.lease, worker.since = None, now
            if self.closed:
                worker.wake.release()
            else:
                self._idle[worker] = None
            return None

    def _assign(self, worker: Worker, now: float, lease: Leaseholder | None = None) -> Leaseholder:
        # By default, to the lease that waits longest. What runs elsewhere is no hand.
        lease = lease or self._waiting.popitem(last=False)[0]
        worker.lease, worker.since = lease, now
        if lease.loop is not None:
            self.kept.add(worker)
        return lease

    def retire(self, worker: Worker) -> bool:
        """Let *worker* go, idle for ``MAX_IDLE`` seconds. False if a lease is on its way to it."""
        with self._lock:
            return self._idle.pop(worker, self) is None  # all values are; else it was not there

    def leave(self, worker: Worker) -> Leaseholder | None:
        """Forget *worker*, whose connections are closed; or keep it for the lease it returns.

        Until here it counts towards the bound, so a lease may have come into line meanwhile.
        """
        with self._lock:
            if self._waiting:
                return self._assign(worker, time.monotonic())
            self.workers.discard(worker)
            self._discarded += worker.connections.discarded
            return None

    def forget(self, lease: Leaseholder) -> bool:
        """Take *lease*, which gave up, out of the line. Returns whether it was there."""
        with self._lock:
            return self._waiting.pop(lease, self) is None  # all values are; else it was not there

    def time_out(self, call: Leaseholder, seen: dict[object, PoolStats]) -> PoolTimeout:
        """Count *call*, which has waited for a worker for too long. Returns its error.

        :param seen: snapshots of pools, for all that time out at once.
        """
        with self._lock:
            self._timeouts += 1
        if self not in seen:
            # No call is hit: this is for those that hang in the clean-up after a lease.
            for worker in list(self.workers):
                worker.connections.cut()
            seen[self] = self.stats()
        return PoolTimeout(seen[self].shortage(time.monotonic() - call.asked))

    def stats(self) -> PoolStats:
        """Return a snapshot. May be called from any thread."""
        with self._lock:
            now = time.monotonic()
            busy = [(each, each.lease, now - each.since) for each in self.workers if each.lease]
            snapshot = PoolStats(
                max_threads=self.settings.max_threads,
                threads=len(self.workers),
                idle=len(self._idle),
                waiting=len(self._waiting),
                calls=self._calls + sum(lease.calls for _, lease, _ in busy),
                queued=self._queued,
                wait_seconds=self._wait_seconds + sum(w.since - each.asked for w, each, _ in busy),
                run_seconds=self._run_seconds,
                timeouts=self._timeouts,
                discarded=self._discarded + sum(w.connections.discarded for w in self.workers),
            )
        # Naming a lease calls the user's code, which may come back here: outside the lock.
        holders = tuple((worker.name, str(lease), since) for worker, lease, since in busy)
        return replace(snapshot, holders=holders)

    def close(self, *, refuse: bool) -> list[Worker]:
        """Take no new leases, and let every worker end as it becomes free.

        :param refuse: fail the leases that wait; otherwise they are still served.
        :returns: the workers, which may still run.
        """
        with self._lock:
            self.closed = True
            waiting = list(self._waiting) if refuse else []
            self._waiting = OrderedDict() if refuse else self._waiting
            idle, self._idle = self._idle, {}
            workers = list(self.workers)
            running = [each.lease for each in workers if refuse and each.lease]
        exiting = "the interpreter exits; the call waited for a worker and did not run [exiting]"
        for lease in waiting:
            lease.refuse(PoolClosed(exiting))
        for worker in idle:
            worker.wake.release()
        for lease in running:
            lease.dismiss(PoolClosed(exiting))
        return workers
