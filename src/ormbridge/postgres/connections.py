"""Connections to PostgreSQL that end: stopped, waited for in vain, or closed (step 4 of a call).

A transaction whose statement was cancelled ends in a rollback, and a connection that may still be
hit by a request is not handed on: see :mod:`.canceller`, which sends them. What touches a
connection of a running call from another thread does so under :attr:`.ThreadConnections.finishing`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper

from ..core.cleaning import transaction_open, transaction_status
from ..core.connections import ThreadConnections
from ..core.errors import BridgeError
from ..core.worker import Worker

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


class StoppedConnections(ThreadConnections):
    """The connections of one worker, where others may stop what they do (:mod:`.canceller`).

    No connection is handed to anybody else while a request to cancel its statement is on its way,
    or may be.
    """

    def __init__(self) -> None:
        super().__init__()
        #: Connections with a statement that was cancelled, and why they have to be discarded; None
        #: if that is yet to be found out: :meth:`settle` does, and keeps one whose server has
        #: carried the request out. Guarded by :attr:`finishing` while a call runs.
        self.stopped: dict[BaseDatabaseWrapper, str | None] = {}
        #: When a call last began or ended that had a connection open: a clean-up begins then.
        self.settled = 0.0

    def settle(self) -> None:
        """Wait until no request is on its way to what has ended, and see to what was stopped."""
        self.settled = time.monotonic()
        self.catch_up()
        # As long as its transaction is open, again before each call of the lease: the rollback of a
        # savepoint clears the flag.
        for connection, reason in list(self.stopped.items()):
            try:
                if transaction_open(connection):
                    _doom(connection, broken=reason is not None)
                    continue
                reason = reason or _reason_to_distrust(connection.connection)
            except Exception as error:
                reason = f"it failed after its statement was cancelled ({error!r})"
            del self.stopped[connection]
            if reason is not None:
                self.discard(connection, reason)

    def catch_up(self) -> None:
        """Wait for who still cancels a statement, or breaks a connection, of a call that ended.

        Nothing to do if none is :attr:`opened`: they look at this first, then at what has ended.
        """
        with self.finishing:
            pass

    def cut(self, call: Any = None) -> None:
        """Break the connections to PostgreSQL on which the thread waits in vain."""
        if not self.finishing.acquire(blocking=False):  # a request or the thread itself is at work
            return
        try:
            opened = list(self.opened)
            # A clean-up, too, has BOUND seconds.
            busy = self.leased or self.running or time.monotonic() - self.settled < self.BOUND
            for connection in () if (busy if call is None else call.ended) else opened:
                raw: Any = connection.connection
                with suppress(Exception):  # closed, or another database
                    if status_of(connection) == 1:
                        with socket_of(raw) as end:
                            if status_of(connection) == 1:  # still: none has its number since
                                self.stopped[connection] = "its server gave no answer in time"
                                end.shutdown(socket.SHUT_RDWR)
        finally:
            self.finishing.release()

    def _close(self, connection: Any, wrapper: type[BaseDatabaseWrapper]) -> None:
        with self.finishing, _seen_by_server(connection.connection):
            super()._close(connection, wrapper)
            if self.stopped.get(connection):
                # It broke: else Django connects anew as the block ends, maybe without an answer.
                connection.closed_in_transaction = True

    def discard(self, connection: BaseDatabaseWrapper, reason: str) -> None:
        """Roll *connection* back, close it and forget it, and log the *reason*."""
        with _seen_by_server(connection.connection):
            super().discard(connection, reason)
        self.stopped.pop(connection, None)


def _doom(connection: BaseDatabaseWrapper, broken: bool) -> None:
    """Have the transaction that is open end in a rollback; end it here if it is *broken*."""
    raw: Any = connection.connection
    if broken and raw is not None:
        raw.close()  # the wrapper goes on believing in its transaction, and runs nothing outside it
    # With an error of the bridge it was doomed before, or asked for, with set_rollback(True).
    known = isinstance(getattr(connection, "rollback_exc", None), BridgeError)
    if connection.in_atomic_block and not (connection.needs_rollback and known):
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
def _seen_by_server(raw: Any) -> Generator[None, None, None]:
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


Worker.connections_type = StoppedConnections
