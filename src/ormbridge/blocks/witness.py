"""See what became of a transaction while the code in it went on (a part of step 4 of a call).

A statement that fails may take the whole transaction with it, also where the code catches the
error. PostgreSQL aborts the transaction, and answers COMMIT with a rollback of which psycopg says
nothing. MariaDB and MySQL roll it back at a deadlock, SQLite where its disk is full, and what comes
after would be committed. Django marks a block in which ``save()`` failed, and rolls it back without
an error.

A :class:`Witness` on a connection remembers what failed, and says as a block ends whether it is
lost. What Django was asked for, with ``set_rollback(True)``, is no loss, nor is what a savepoint
undid, nor a failure that leaves the transaction whole.

Assumes that everything runs on the thread that owns the connection. The server is asked nothing,
but for one variable after a lock wait of MariaDB or MySQL.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.transaction import Atomic, TransactionManagementError
from django.db.utils import DatabaseErrorWrapper

from ..core import hooks
from ..core.cleaning import close_if_old
from ..core.connections import ThreadConnections
from ..core.errors import BridgeError, logger
from ..postgres.connections import is_aborted
from .outlived import Cursors, Open

# Stands where Django keeps the error that marked a block.
_ASKED = BridgeError("a rollback was asked for, with set_rollback(True)")
# MariaDB and MySQL roll back the whole transaction: at a deadlock, where a row changed since it was
# read (innodb_snapshot_isolation), and where there is no room for another lock; and where the
# connection broke: it had gone, was lost meanwhile, was killed (MariaDB), or was idle for too long
# (MySQL). A lock wait does so where innodb_rollback_on_timeout is on.
_ROLLED_BACK, _LOCK_WAIT = (1213, 1020, 1206, 2006, 2013, 1927, 4031), 1205
_DRIVERS = ("psycopg", "psycopg2", "psycopg_binary", "MySQLdb", "pymysql", "mysql")
#: What ``channels.db`` and signals call. Where it is Django's own, as on the threads of frames, it
#: closes a connection in a transaction, because that has autocommit switched off.
CLEAN_UP = "close_if_unusable_or_obsolete"
#: Whose frames do not say where an error was caught, or anything else was done.
MACHINERY = {"ormbridge", "asgiref", "django", "asyncio", "concurrent", "contextlib", *_DRIVERS}


class Witness(DatabaseErrorWrapper):
    """Sees what one connection is asked for, and how its blocks end.

    It stands for Django's block around all that is asked of the driver: procedures and fetches too.
    """

    wrapper: Any  # Django's word for its connection, which has no type

    def __init__(self, connection: Any, own: ThreadConnections | None = None) -> None:
        """See what *connection* does from now on.

        :param own: those of its worker. Then a block that is lost is logged.
        """
        super().__init__(connection)
        self._own: Any = own
        #: The blocks in the open transaction that were lost: in what call, on what, and why.
        self.lost: list[tuple[Any, str, str]] = []
        #: How many blocks of ``atomic()`` are open.
        self.blocks = 0
        self.forget()
        connection.execute_wrappers.insert(0, self.execute)
        self.cursors: Any = None if own is None else Cursors(connection, own)
        ends = ("commit", "rollback", "savepoint_rollback") if own is not None else ()
        #: What it has put on the connection, by name.
        self.put: dict[str, Any] = {how: partial(self.end, how) for how in ends}
        self.put |= {"ormbridge_witness": self, "wrap_database_errors": self}
        self.put |= {"set_rollback": self.set_rollback, "set_autocommit": self.set_autocommit}
        if own is None and CLEAN_UP not in vars(connection):
            self.put[CLEAN_UP] = partial(close_if_old, connection)
        vars(connection).update(self.put)

    def forget(self) -> None:
        """Forget what failed: it was undone, or its transaction has ended."""
        #: What the last statement that failed in a transaction raised.
        self.error: Exception | None = None
        self.statement = ""
        #: Whether the database rolled the transaction back then, or PostgreSQL aborted it.
        self.gone = self.aborted = False
        if not self.wrapper.needs_rollback:
            self.wrapper.rollback_exc = None  # Django leaves that of an earlier block there

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        if kind is not None:
            try:
                super().__exit__(kind, value, traceback)
            except Exception as error:
                self.see(error)
                raise

    def execute(self, execute: Callable[..., Any], sql: Any, *args: Any) -> Any:
        """Execute a statement, as Django asks, and see whether it fails."""
        if self.cursors and not is_aborted(self.wrapper):
            self.cursors.end("statement")
        try:
            result = execute(sql, *args)
        except Exception as error:
            self.see(error)
            if self.error is error:
                self.statement = str(sql)[:200]
            raise
        if (self.error or self.wrapper.rollback_exc) and str(sql).startswith("ROLLBACK TO"):
            self.forget()
            self.wrapper.rollback_exc = None
        return result

    def see(self, error: Exception) -> None:
        """See *error*, that of a statement or a fetch."""
        connection = self.wrapper
        # Where all is lost already, a statement only says so again.
        told = self.error and (self.gone or self.aborted or connection.needs_rollback)
        if connection.in_atomic_block and not told and self.error is not error:
            self.error, self.statement = error, ""
            self.gone, self.aborted = _is_gone(connection, error), is_aborted(connection)
            if self.gone and self.blocks:
                # What follows would be committed without what came before: refuse it.
                connection.needs_rollback, connection.rollback_exc = True, error

    def loss(self, marked: bool) -> tuple[str, Exception | None] | None:
        """Say why a block that ends without an error is lost; None if it is not, or is meant to be.

        :param marked: whether Django rolls it back.
        :returns: the reason and the remedy in words, and the error that was caught, if there was
            one.
        """
        connection = self.wrapper
        error: Any = connection.rollback_exc if marked else None
        while isinstance(error, TransactionManagementError):  # of code that went on after that
            error = error.__cause__
        error = error or self.error
        if connection.closed_in_transaction:
            why = "its connection was closed"
        elif error is _ASKED:
            return None
        elif self.gone or is_aborted(connection):
            why = "the database rolled it back"
        elif marked:
            why = "Django marked it for a rollback"
        else:
            return None
        if error is not None:
            statement = self.statement if error is self.error else ""
            failed = f" when {statement!r} failed" if statement else ""
            why += f"{failed} ({type(error).__name__}: {str(error).strip()}){_caught(error)}"
        raw = connection.connection
        if connection.closed_in_transaction or self.gone or getattr(raw, "closed", False):
            why += ". An atomic() inside would not have saved it: run all of it again"
        elif not isinstance(error, BridgeError):  # such as a cancellation: that says what to do
            why += ". Put what may fail into an atomic() of its own, and catch the error around it"
        return why, error

    def set_rollback(self, rollback: bool) -> None:
        """Do what Django's ``set_rollback`` does, and know that it was asked."""
        type(self.wrapper).set_rollback(self.wrapper, rollback)
        self.wrapper.rollback_exc = _ASKED if rollback else None

    def set_autocommit(self, autocommit: bool, *args: Any, **kwargs: Any) -> None:
        """Do what Django's ``set_autocommit`` does; close a connection that can't be switched on.

        It broke after the commit or rollback. Switched off, it would pass for one in a transaction,
        which is neither replaced nor given back.
        """
        connection = self.wrapper
        try:
            type(connection).set_autocommit(connection, autocommit, *args, **kwargs)
        finally:
            if autocommit and not (connection.autocommit or connection.in_atomic_block):
                connection.close()

    def end(self, how: str, *args: Any) -> None:
        """Do *how*, a method of Django's; log if a block of ``transaction.atomic()`` is lost.

        An inner one is logged as the outermost ends, unless nothing is saved then, and none was to
        be: after ``set_rollback(True)``, as imports are tried, or after an error, which tells.
        """
        connection, lost = self.wrapper, None
        block, handled = sys._getframe(1), sys.exc_info()[2]  # noqa: SLF001 # Django's caller
        names = block.f_locals  # Django's __exit__, whatever a package has around it
        if isinstance(names.get("self"), Atomic) and names.get("exc_type", self) is None:
            raises = handled is not None and handled.tb_frame is block
            lost = None if raises else self.loss(marked=how != "commit")
            if how == "commit" and is_aborted(connection):
                how = "rollback"  # as the server would do; this forgets on_commit() as well
        if lost is not None:
            self.lost.append((str(self._own.running), connection.alias, lost[0]))
        elif how == "rollback":
            self.lost.clear()
        if how != "savepoint_rollback":
            while self.lost:
                what = "%s: a transaction.atomic() on %r ended without an error, and is lost: %s"
                with suppress(Exception):  # a handler that queries fails in what is aborted
                    logger.error(what, *self.lost.pop(0))
            self.forget()
        # What the server drops is closed before. Freed later, it would be closed in the transaction
        # of another call, which fails there, and is aborted.
        self.cursors.end(how, *args)
        getattr(type(connection), how)(connection, *args)

    def leave(self) -> None:
        """Note that a block of ``atomic()`` has ended. Only on a worker is there more to see."""
        self.blocks -= 1
        if self._own is None and not self.blocks:
            self.wrapper.execute_wrappers.remove(self.execute)
            while self.put:  # no cycle is left
                delattr(self.wrapper, self.put.popitem()[0])


def attend(connection: BaseDatabaseWrapper) -> Witness:
    """Have a witness see what *connection* does in a block of ``atomic()``, until it leaves."""
    witness: Witness = getattr(connection, "ormbridge_witness", None) or Witness(connection)
    witness.blocks += 1
    return witness


def _attend_worker(connection: Any, own: ThreadConnections) -> None:
    """Have a witness on a worker's connection, which remembers nothing of the last lease."""
    witness = getattr(connection, "ormbridge_witness", None) or Witness(connection, own)
    witness.forget()
    witness.lost.clear()
    witness.cursors.end()
    connection.atomic_blocks = Open(connection.atomic_blocks)
    connection.execute_wrappers = Open(connection.execute_wrappers)
    if witness.execute not in connection.execute_wrappers:
        connection.execute_wrappers.insert(0, witness.execute)


def _is_gone(connection: Any, error: Exception) -> bool:
    """Say whether the database rolled the transaction back at *error*."""
    raw, code = connection.connection, error.args[0] if error.args else None
    if connection.vendor == "sqlite":
        with suppress(Exception):  # it was closed
            return raw is not None and not raw.in_transaction
        return True
    if connection.vendor == "mysql" and code == _LOCK_WAIT:
        with suppress(Exception), raw.cursor() as cursor:  # the connection broke
            cursor.execute("SELECT @@innodb_rollback_on_timeout")
            return bool(cursor.fetchone()[0])
    return connection.vendor == "mysql" and code in _ROLLED_BACK


def _caught(error: Exception) -> str:
    # The outermost frame of a traceback is the last that the error came to.
    for frame, line in walk_tb(error.__traceback__):
        if package_of(frame) not in MACHINERY:
            code = frame.f_code
            place = f"{Path(code.co_filename).name}:{line} in {code.co_qualname}"
            return f", and the error was caught at {place}"
    return ""


def package_of(frame: FrameType) -> str:
    """Return the name of the package whose code runs in *frame*."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


hooks.attend = _attend_worker
