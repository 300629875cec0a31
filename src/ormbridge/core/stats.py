"""What can be seen of a pool from outside, and what that tells somebody who waited in vain."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import PoolTimeout

# How many holders an error message names.
_NAMED = 5


@dataclass(frozen=True, slots=True)
class PoolStats:
    """A snapshot of the pool. Counters run from the first call of the process.

    In tests, from the last change of ``settings.ORMBRIDGE``: that makes a new pool.
    """

    #: The bound on workers.
    max_threads: int
    #: Workers that exist.
    threads: int
    #: Workers that are free.
    idle: int
    #: Calls that wait for a worker now.
    waiting: int
    #: Calls that have run.
    calls: int
    #: Calls that had to wait for a worker.
    queued: int
    #: Seconds that calls have waited for a worker, summed.
    wait_seconds: float
    #: Seconds that calls have had a worker, summed.
    run_seconds: float
    #: Calls that waited for a worker in vain, and failed with ``PoolTimeout``.
    timeouts: int
    #: Connections thrown away because a call left a transaction open or cleaning failed.
    discarded: int
    #: For each leased worker: its thread's name, what it runs, and for how many seconds.
    holders: tuple[tuple[str, str, float], ...] = ()

    def shortage(self, waited: float) -> str:
        """Say why a call has no worker after it *waited*, in seconds, and what to do about it."""
        longest = sorted(self.holders, key=lambda holder: -holder[2])
        names = ", ".join(f"{name} by {by} for {time:.1f} s" for name, by, time in longest[:_NAMED])
        more = f" and {len(longest) - _NAMED} more" if len(longest) > _NAMED else ""
        return (
            f"waited {waited:.1f} s for a worker: {len(longest)} of {self.max_threads} leased, "
            f"{self.waiting} more calls waiting; held longest: {names}{more}. "
            "Shorten what holds the workers, or raise ASGI_THREADS or "
            "settings.ORMBRIDGE['MAX_THREADS'] (mind the database's max_connections) or "
            "['TIMEOUT'] [pool-full]"
        )


def no_thread(reason: Exception, pool: PoolStats) -> PoolTimeout:
    """Return the error of a call that has no thread because the system starts none."""
    error = PoolTimeout(
        f"no thread could be started ({reason}), and there is none for it: {pool.threads} of "
        f"{pool.max_threads} workers exist. The limit of this user or container on threads and "
        "processes is reached: raise it (ulimit -u, the pids of the container), or lower "
        "ASGI_THREADS or settings.ORMBRIDGE['MAX_THREADS'] [no-thread]"
    )
    error.__cause__ = reason
    return error
