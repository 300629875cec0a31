"""The Django connections that live on one worker's thread (step 4 of a call).

Guarantees:

* connections are cleaned as a lease starts and as it ends, and a clean-up that cannot matter is
  left out: between two leases nobody else touches the thread, so at the start only age can have
  changed;
* a lease that ends with a transaction open leaves nothing behind: it is rolled back, the connection
  discarded, a warning logged;
* a clean-up never raises: what cannot be cleaned is discarded, and the call's own outcome stands.

Assumes that every method but the constructor, and :meth:`ThreadConnections.cut`, runs on the
worker's own thread. Connections make themselves known through Django's ``connection_created``
signal, so a call that opens none costs nothing here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from . import hooks
from .cleaning import close_if_dead, close_if_old, transaction_open
from .errors import BridgeError, logger
from .settings import Reset

#: Seconds after which a lease cleans up before it starts even where no connection grew too old.
SWEEP = 1.0


class ThreadConnections:
    """The open connections of one worker. A wing that stops statements has more to do with them."""

    #: Seconds that the thread may wait for PostgreSQL where nobody waits for what comes of it.
    BOUND = 4.0

    def __init__(self) -> None:
        #: Django's wrappers that connected on this thread. One that closed stays in here until the
        #: next clean-up.
        self.opened: list[BaseDatabaseWrapper] = []
        #: All of Django's wrappers on this thread, open or not, by alias: where Django keeps them.
        self.wrappers: dict[str, BaseDatabaseWrapper] = {}
        #: Connections thrown away since the worker started.
        self.discarded = 0
        #: When a lease next has to clean up before it starts, on the clock of time.monotonic().
        self.due = 0.0
        #: Whether a lease has the thread that may go on after this call.
        self.leased = False
        #: The call that runs.
        self.running: object = None
        #: Held, where another thread may break a connection, to do that, to close one, or to finish
        #: a call. Re-entrant: freeing an object may close one.
        self.finishing = threading.RLock()

    def adopt_thread(self) -> None:
        """Find where Django keeps those of the calling thread."""
        # That of asgiref's Local, which has no way to ask whether anything is there.
        held: Any = connections
        storage = getattr(held._connections, "_storage", None)  # noqa: SLF001
        self.wrappers = getattr(storage, "__dict__", self.wrappers)

    def note(self, connection: Any) -> None:
        """Take in *connection*, which has just connected."""
        if connection not in self.opened:
            self.opened.append(connection)
        hooks.attend(connection, self)
        # What Django, channels.db and the signals of a request call to clean up.
        connection.close_if_unusable_or_obsolete = partial(self._clean_up, connection)
        connection.close = partial(self._close, connection, type(connection))
        if connection.close_at is not None:
            self.due = min(self.due, connection.close_at)

    def lease_starts(self, now: float) -> None:
        """Close what grew too old while the worker was idle. *now* is ``time.monotonic()``.

        Nothing to do before :attr:`due`.
        """
        self.due = now + SWEEP
        self._find()  # and be due before that where one grows too old
        self._each(self.opened, close_if_old)

    def lease_ends(self, reset: Reset | None, failed: bool) -> None:
        """Leave every connection as the next lease may have it, or close it.

        Nothing to do if there are no :attr:`wrappers`, no *reset*, and the lease succeeded.

        :param reset: what ``RESET`` names. It is called with each of Django's connections, one that
            is not open too: the thread may remember something as well.
        :param failed: whether the call raised: it may have failed half-way through connecting.
        """
        if failed:
            self._find()
        self._each(self.opened, self._end_transaction, "the call")
        if reset is not None:
            known = dict.fromkeys([*self.opened, *connections.all(initialized_only=True)])
            self._each(known or [connections[DEFAULT_DB_ALIAS]], _reset, reset)
            self._each(self.opened, self._end_transaction, "RESET")
        self._each(self.opened, self._hand_back)
        if len(self.wrappers) > len(self.opened):
            # Django's object lives no longer than its connection: somebody may have left something.
            for connection in connections.all(initialized_only=True):
                if connection.connection is None:
                    del connections[connection.alias]

    def close(self) -> None:
        """Close every connection: the thread ends."""
        self._find()
        # Of the base class: SQLite's own spares databases in memory, which go with their thread.
        self._each(self.opened, self._close, BaseDatabaseWrapper)

    def _find(self) -> None:
        # A connect() that fails half-way leaves a connection that no signal announced.
        for connection in connections.all(initialized_only=True):
            if connection.connection is not None:
                self.note(connection)

    def _each(self, those: Iterable[Any], action: Callable[..., object], *args: Any) -> None:
        for connection in those:
            try:
                action(connection, *args)
            except BaseException as error:  # RESET may call sys.exit()
                self.discard(connection, f"cleaning it failed ({error!r})")
        self.opened = [each for each in self.opened if each.connection is not None]

    def _end_transaction(self, connection: BaseDatabaseWrapper, who: str) -> None:
        if transaction_open(connection):
            self.discard(connection, f"{who} left a transaction open; it was rolled back")

    def _hand_back(self, connection: BaseDatabaseWrapper) -> None:
        connection.queries_log.clear()
        wrappers, debug = connection.execute_wrappers, connection.force_debug_cursor
        if (wrappers, debug) != (lasting := getattr(connection, "ormbridge_lasting", ((), False))):
            wrappers[:] = [each for each in lasting[0] if each in wrappers]
            connection.force_debug_cursor = lasting[1] and debug
            _set_lasting(connection)
        hooks.attend(connection, self)
        if connection not in self.wrappers.values():  # del connections[…]: nobody will use it
            self._close(connection, BaseDatabaseWrapper)  # as the thread's end does
        close_if_old(connection)

    def _clean_up(self, connection: BaseDatabaseWrapper) -> None:
        if self.leased:
            close_if_dead(connection)
        else:
            close_if_old(connection)

    def settle(self) -> None:
        """See to what was stopped: nothing here. Before a call, and after it.

        Nothing to do if no connection is :attr:`opened`.
        """

    def catch_up(self) -> None:
        """Wait for who breaks a connection of a call that ended: nobody here."""

    def cut(self, call: Any = None) -> None:
        """Break the connections that wait in vain: nothing here. Any thread; never waits.

        :param call: for whose sake; if its worker is done with it, nothing happens. Without one,
            what the thread does after a lease is meant: RESET, or the rollback of what was left.
        """

    def _close(self, connection: Any, wrapper: type[BaseDatabaseWrapper]) -> None:
        """Close *connection* as *wrapper*, its class or a base of that, does."""
        wrapper.close(connection)

    def discard(self, connection: BaseDatabaseWrapper, reason: str) -> None:
        """Roll *connection* back, close it and forget it, and log the *reason*."""
        self.discarded += 1
        raw = connection.connection
        # PostgreSQL ends a transaction with its connection. To roll back takes the lock of psycopg
        # that a generator in the middle of a COPY keeps.
        rollback = getattr(raw, "rollback", None) if connection.vendor != "postgresql" else None
        # Each step may fail on a broken connection; the next one still has to be tried.
        for step in filter(None, (rollback, getattr(raw, "close", None), connection.close)):
            with suppress(BaseException):  # it would end the worker
                step()
        connection.connection = None
        # A lease that goes on keeps what it put on the wrapper, such as its tenant. The next lease
        # gets a new one, and so does this one where it may still believe in its atomic blocks.
        stays = self.leased and not connection.in_atomic_block
        if connection in connections.all(initialized_only=True) and not stays:
            del connections[connection.alias]
        with suppress(BaseException):  # a handler that writes to the database may fail
            logger.warning("connection %r discarded: %s", connection.alias, reason)


def in_transaction(opened: Iterable[BaseDatabaseWrapper]) -> bool:
    """Say whether one of *opened* has a transaction open."""
    for connection in opened:
        with suppress(Exception):  # a broken one
            if transaction_open(connection):
                return True
    return False


class _NotConnectedError(BridgeError):
    """RESET would send a statement on a connection that is not open, and has nothing to clear."""


def _reset(connection: Any, reset: Reset) -> None:
    if connection.connection is None:
        connection.ensure_connection = partial(_refuse_to_connect, connection.alias)
    with suppress(_NotConnectedError):
        reset(connection)


def _refuse_to_connect(alias: str) -> None:
    raise _NotConnectedError(f"connection {alias!r} is not open, and RESET does not open it")


class _Here(threading.local):
    #: The worker whose thread this is, or that a wing acts for here; None if there is none.
    worker: Any = None


here = _Here()


def connections_of_thread() -> ThreadConnections | None:
    """Return the connections of the worker whose lease runs here, or None."""
    return here.worker and here.worker.connections  # type: ignore[no-any-return]


def _note(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
    # Not what the user's code makes for itself (connection.copy()) and may keep or drop, nor what
    # a test lends to the worker (``testing/``).
    own, of_django = connections_of_thread(), connections.all(initialized_only=True)
    if own is not None and connection in of_django and not connection.allow_thread_sharing:
        _set_lasting(connection)
        own.note(connection)


def _set_lasting(connection: Any) -> None:
    """Note what is on *connection* now: that stays there from lease to lease."""
    connection.ormbridge_lasting = [*connection.execute_wrappers], connection.force_debug_cursor


def follow_receivers() -> None:
    """Be told of each connection that is made, after all who want to know by now."""
    connection_created.disconnect(dispatch_uid="ormbridge.connections")
    connection_created.connect(_note, dispatch_uid="ormbridge.connections")
