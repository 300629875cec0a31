"""Connections to PostgreSQL that end: stopped, waited for in vain, or closed (step 4 of a call).

A transaction whose statement was cancelled ends in a rollback, and a connection that may still be
hit by a request is not handed on: see :mod:`.canceller`, which sends them. What touches a
connection of a running call from another thread does so under :attr:`.ThreadConnections.finishing`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from ..core import hooks
from ..core.cleaning import transaction_open, transaction_status
from ..core.connections import ThreadConnections
from ..core.errors import BridgeError

# Seconds to wait for the server to close its end, at the most.
_PATIENCE = 1.0


def status_of(connection: Any) -> int:
    """Return :func:`.transaction_status` of *connection*, Django's; 0 of another database.

    Any thread: 1 says that it executes a statement.
    """
    raw = connection.connection
    return transaction_status(raw) if connection.vendor == "postgresql" and raw else 0


def is_aborted(connection: Any) -> bool:
    """Say whether the transaction on *connection*, Django's, is aborted, or broken."""
    return status_of(connection) in (3, 4)


def socket_of(raw: Any) -> socket.socket:
    """Return another handle on the socket of *raw*, a connection to PostgreSQL. Any thread."""
    return socket.socket(fileno=os.dup(raw.fileno()))


def cut(own: ThreadConnections, call: Any) -> None:
    """Break the connections to PostgreSQL on which the thread waits. Any thread; never waits.

    :param call: for whose sake; if its worker is done with it, nothing happens. Without one,
        what the thread does after a lease is meant: RESET, or the rollback of what was left.
    """
    if not own.finishing.acquire(blocking=False):  # a request or the thread itself is at work
        return
    try:
        opened = list(own.opened)
        done = own.leased or own.running is not None if call is None else call.ended
        for connection in () if done else opened:
            raw: Any = connection.connection
            with suppress(Exception):  # closed, or another database
                if status_of(connection) == 1:
                    with socket_of(raw) as end:
                        if status_of(connection) == 1:  # still: it is no other with the same number
                            own.stopped[connection] = "its server gave no answer in time"
                            end.shutdown(socket.SHUT_RDWR)
    finally:
        own.finishing.release()


def settle(own: ThreadConnections) -> None:
    """See to the connections of *own* on which a statement was stopped. On its thread."""
    # As long as its transaction is open, again before each call of the lease: the rollback of a
    # savepoint clears the flag.
    for connection, reason in list(own.stopped.items()):
        try:
            if transaction_open(connection):
                _doom(connection, broken=reason is not None)
                continue
            reason = reason or _reason_to_distrust(connection.connection)
        except Exception as error:
            reason = f"it failed after its statement was cancelled ({error!r})"
        del own.stopped[connection]
        if reason is not None:
            own.discard(connection, reason)


def _doom(connection: BaseDatabaseWrapper, broken: bool) -> None:
    """Have the transaction that is open end in a rollback; end it here if it is *broken*."""
    raw: Any = connection.connection
    if broken and raw is not None:
        raw.close()  # the wrapper goes on believing in its transaction, and runs nothing outside it
    if connection.in_atomic_block:
        connection.needs_rollback = True
        connection.rollback_exc = BridgeError(  # type: ignore[attr-defined] # not in the stubs
            f"a statement on connection {connection.alias!r} was cancelled together with the task "
            "that awaited it, and its transaction has to be rolled back: leave the atomic block"
        )


def _reason_to_distrust(raw: Any) -> str | None:
    """Say why a request to cancel a statement may still hit *raw*, which has no transaction."""
    if raw is None or raw.closed:
        return None
    with raw.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    raw.rollback()  # nothing to do in autocommit mode
    if pid == raw.info.backend_pid:
        return None  # the driver returned when the server had carried out the request
    return "its statement was cancelled through a pooler, which may do so later"


@contextmanager
def seen_by_server(raw: Any) -> Generator[None, None, None]:
    """If the block closes *raw*, a connection to PostgreSQL, wait until the server is done with it.

    The server goes on counting a connection until its process for it has ended. A worker that
    connected anew before that would be two for a moment.
    """
    watch = None
    with suppress(Exception):  # broken or closed
        watch = socket_of(raw) if hasattr(raw, "pgconn") else None  # psycopg 3
    with watch or nullcontext():
        yield
        if watch is not None:
            with suppress(Exception):  # that of a pool of somebody else's may know nothing any more
                watch.settimeout(_PATIENCE)
                while raw.closed and watch.recv(4096):  # b"": the server has closed its end
                    pass


hooks.closing = seen_by_server
hooks.cut = cut
hooks.settle = settle
