"""Close old and broken connections, and none in a transaction (a part of step 4 of a call).

Everything here runs on the thread of the connections. Whether one has a transaction open is not
asked of the server: it is what Django and the driver know already.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper


def refresh_own_thread() -> None:
    """Replace dead connections of the calling thread, which belongs to a synchronous frame.

    The frame owns its connections: a transaction, ``SET`` state or a ``CONN_MAX_AGE`` of 0 is its
    own affair, so nothing that still works is closed. What broke is, and ``CONN_HEALTH_CHECKS``
    start afresh.
    """
    for connection in connections.all(initialized_only=True):
        close_if_dead(connection)


def close_if_dead(connection: BaseDatabaseWrapper) -> None:
    """Close *connection* if it broke, so that the next call connects anew."""
    with suppress(Exception):  # then the call meets it as it is, if it uses it at all
        if connection.connection is not None and not transaction_open(connection):
            connection.health_check_done = False  # type: ignore[attr-defined] # not in the stubs
            if may_be_dead(connection):
                connection.errors_occurred = not connection.is_usable()
                if connection.errors_occurred:
                    connection.close()


def may_be_dead(connection: BaseDatabaseWrapper) -> bool:
    """Say whether *connection* met an error, or its driver says that it has ended.

    Django sees no error of a cursor that is closed, or freed.
    """
    connection.errors_occurred |= bool(getattr(connection.connection, "closed", False))
    return connection.errors_occurred


def close_if_old(connection: BaseDatabaseWrapper) -> None:
    """Do what Django's method does, except in a transaction, whatever has taken its place there."""
    may_be_dead(connection)
    if not connection.in_atomic_block:
        # Of the class: on a worker the connection has one of its own, ThreadConnections.note().
        type(connection).close_if_unusable_or_obsolete(connection)


def close_old_connections_outside_transactions() -> None:
    """Do what Django's ``close_old_connections`` does, except inside a transaction."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


@contextmanager
def without_old_connections() -> Generator[None, None, None]:
    """Clean up before and after, as ``channels.db`` does."""
    close_old_connections_outside_transactions()
    try:
        yield
    finally:
        close_old_connections_outside_transactions()


def transaction_open(connection: BaseDatabaseWrapper) -> bool:
    """Say whether *connection* has a transaction open.

    By Django's word, and by the server's where the driver knows it without asking: psycopg,
    psycopg2, sqlite3, mysql.connector and PyMySQL. mysqlclient knows autocommit only, so there a
    ``START TRANSACTION`` sent by hand is not seen.
    """
    autocommit = connection.settings_dict["AUTOCOMMIT"]
    raw = connection.connection
    if connection.in_atomic_block or raw is None:
        return connection.in_atomic_block
    if connection.autocommit != autocommit:
        return True
    if connection.vendor == "postgresql":
        # 0 is idle, 4 a broken connection, which has no transaction left. Without autocommit, the
        # next statement begins one. A generator half-way in notifies() keeps psycopg's lock: the
        # next statement would wait for it.
        is_kept = hasattr(raw, "lock") and raw.lock.locked()
        return is_kept or raw.autocommit != autocommit or transaction_status(raw) in (1, 2, 3)
    if connection.vendor == "mysql" and hasattr(raw, "get_autocommit"):
        # SERVER_STATUS_IN_TRANS is 1; mysqlclient has no server_status. Without autocommit, any
        # statement has begun a transaction.
        status = getattr(raw, "server_status", not autocommit)
        return raw.get_autocommit() != autocommit or bool(status & 1)
    return bool(getattr(raw, "in_transaction", False))  # sqlite3, mysql.connector


def transaction_status(raw: Any) -> int:
    """Return libpq's PGTransactionStatusType of *raw*: 0 is idle, 1 active, 3 aborted, 4 broken."""
    # psycopg 3 keeps it on pgconn, psycopg2 on info.
    status: int = (getattr(raw, "pgconn", None) or raw.info).transaction_status
    return status
