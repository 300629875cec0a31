"""Close all connections to a test database before it is dropped.

A database to which somebody is connected can't be dropped: "is being accessed by other users". In
a process of tests that may be idle workers of the pool, asgiref's one thread, and whatever else
the code under test has left behind on a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from asgiref.sync import SyncToAsync
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test.runner import DiscoverRunner

from ..core.process import default_pool, end_pools, live_pools
from ..core.worker import Leaseholder, Worker

#: Seconds that a worker may take to be done with what the test no longer waits for.
GRACE = 1.0
# Seconds that the server may take to see that a connection was closed.
_NOTICED = 2.0

#: Where connections to PostgreSQL were opened, by the number of the server's process for each: the
#: pytest plugin takes that down.
places: dict[int, str] = {}

_OTHERS = """
    SELECT pid, application_name, state, left(query, 200) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND backend_type = 'client backend' ORDER BY pid
"""


def close_everything(patience: float | None = None) -> None:
    """Close the connections of the pool's workers and of asgiref's thread, on their own threads.

    :param patience: seconds to wait for each of them; by default ``TIMEOUT``.
    """
    patience = default_pool().settings.timeout if patience is None else patience
    end_pools(patience)
    wait([SyncToAsync.single_thread_executor.submit(_close_own)], patience)


def _close_own() -> None:
    for connection in connections.all(initialized_only=True):
        close_for_good(connection)


def close_for_good(connection: BaseDatabaseWrapper) -> None:
    """Close *connection*, a database in memory too, which SQLite's own ``close`` spares."""
    with suppress(Exception):  # a broken one
        BaseDatabaseWrapper.close(connection)


def depths() -> dict[str, int]:
    """Return how many transactions and savepoints are open on the calling thread."""
    return {each.alias: len(each.atomic_blocks) for each in connections.all(initialized_only=True)}


def leases_left(patience: float) -> list[tuple[Worker, Leaseholder]]:
    """Return the leases that still have a worker, but for that of a test's transaction.

    :param patience: seconds that a running call may take to end. One that is held and has nothing
        to do will not end: nobody waits for it.
    """
    began = time.monotonic()
    while True:
        left = [
            (worker, lease)
            for pool in live_pools()
            for worker in sorted(pool.workers, key=lambda worker: worker.since)
            if (lease := worker.lease) and not getattr(lease, "is_of_test", False)
        ]
        # A lease that runs no call does not end by itself.
        running = any(getattr(lease, "running", lease) is not None for _, lease in left)
        if not left or time.monotonic() - began > (patience if running else min(GRACE, patience)):
            return left
        time.sleep(0.005)


def free_before_drop(warn: Callable[[str], object]) -> None:
    """See to it that Django can drop the test databases of the calling thread's connections.

    As it is about to drop one, everything is closed, and who is still connected to PostgreSQL is
    disconnected.

    :param warn: called with the name of each such connection.
    """
    for connection in connections.all():
        creation: Any = connection.creation
        if getattr(creation.destroy_test_db, "func", None) is not _destroy:
            creation.destroy_test_db = partial(_destroy, creation.destroy_test_db, connection, warn)


def _destroy(destroy: Any, connection: Any, warn: Any, *args: Any, **kwargs: Any) -> None:
    close_everything()
    # Django's arguments: old_database_name, verbosity, keepdb, suffix.
    if not (kwargs.get("keepdb") or any(args[2:3])) and connection.vendor == "postgresql":
        for other in disconnect_others(connection):
            warn(other)
    destroy(*args, **kwargs)


def disconnect_others(connection: BaseDatabaseWrapper) -> list[str]:
    """Disconnect who else is connected to the database of *connection*, on PostgreSQL.

    :returns: who that was, in words.
    """
    pooled: Any = connection
    pooled.close()
    pooled.close_pool()
    deadline = time.monotonic() + _NOTICED
    with connection.cursor() as cursor:
        cursor.execute(_OTHERS)
        while (others := cursor.fetchall()) and time.monotonic() < deadline:
            time.sleep(0.01)
            cursor.execute(_OTHERS)
        for pid, *_ in others:  # and wait until each has ended
            cursor.execute("SELECT pg_terminate_backend(%s, %s)", [pid, int(1000 * _NOTICED)])
    return [
        f"{connection.settings_dict['NAME']!r} was still in use, by a connection "
        f"{places.get(pid, 'opened by another program, or around Django')}: {state}, "
        f"{application or 'no application_name'}, last statement {query!r}. It was terminated, so "
        "that the database could be dropped"
        for pid, application, state, query in others
    ]


@contextmanager
def many_transactions() -> Generator[list[str], None, None]:
    """Wait at the end for all leases of the pool, and close all connections but the thread's own.

    Yields a list that holds, after the block, the leases that did not end, in words.
    """
    left: list[str] = []
    try:
        yield left
    finally:
        held = leases_left(default_pool().settings.timeout)
        left += [f"{worker.name} is still leased, by {lease}" for worker, lease in held]
        close_everything(0.0 if held else None)
        # What they still lock would keep Django from emptying the tables.
        for connection in connections.all(initialized_only=True) if held else ():
            if connection.vendor == "postgresql":
                with suppress(Exception):  # of an alias that the test may not use
                    disconnect_others(connection)


class BridgeRunner(DiscoverRunner):
    """Django's test runner, which can drop the test databases whoever is still connected.

    Name it in ``settings.TEST_RUNNER``: ``"ormbridge.testing.BridgeRunner"``.
    """

    def teardown_databases(self, old_config: Any, **kwargs: Any) -> None:
        """Drop the test databases."""
        free_before_drop(self.log)
        super().teardown_databases(old_config, **kwargs)
