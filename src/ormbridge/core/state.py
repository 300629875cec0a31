"""What state a connection is in, by the word of Django, of the driver and of the server.

Nothing here asks the server: it is what the driver knows already.
"""

from __future__ import annotations

from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper


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
        # next statement begins one.
        return raw.autocommit != autocommit or transaction_status(raw) in (1, 2, 3)
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
