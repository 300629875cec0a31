"""What outlives the call that began it, and is freed in another's (a part of step 4 of a call).

An error keeps the variables of a function that failed, a cycle keeps them until it is collected. A
generator among them is suspended inside of Django's blocks, and its end acts on the connection that
its thread has by then: it would take the transaction of another call with it, or close its cursor
while another thread uses the connection. So blocks and wrappers that ended with their call are not
left a second time, and a cursor is closed on its thread, at the latest as the lease ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from django.db.transaction import Atomic

from ..core.connections import ThreadConnections, connections_of_thread
from ..core.errors import BridgeError
from ..postgres.connections import status_of


class Open(list[Any]):
    """What is open on a connection: Django's ``atomic_blocks``, or ``execute_wrappers``."""

    def pop(self, *index: Any) -> Any:
        """Take the last one out, unless who leaves has ended with its call.

        :raises BridgeError: if that is a block: Django would go on, and end another one.
        """
        names = sys._getframe(1).f_locals  # noqa: SLF001 # of Django's __exit__, or execute_wrapper()
        if "wrapper" in names and names["wrapper"] not in self:
            return None
        if isinstance(block := names.get("self"), Atomic) and block not in self:
            raise BridgeError("this transaction.atomic() has ended with its call [call-ended]")
        return super().pop(*index)


class Cursors(dict[Any, tuple[Callable[[], object], set[str]]]):
    """The cursors of ``iterator()`` that one connection has, how to close each, and what ends it.

    That is a savepoint around it, a method of Django's that ends its transaction, or the next
    statement.
    """

    def __init__(self, connection: Any, own: ThreadConnections) -> None:
        self._connection, self._own = connection, own
        # The first one is on its way through Django's own methods as the connection is made.
        for how in ("create_cursor", "chunked_cursor"):
            setattr(connection, how, partial(self.make, how))

    def make(self, how: str, *name: str | None) -> Any:
        """Do *how*, a method of Django's, and know of the cursor if it is iterator()'s."""
        connection = self._connection
        cursor = getattr(type(connection), how)(connection, *name)
        if how == "chunked_cursor" or any(name):
            # On other servers than PostgreSQL it outlives its transaction.
            ends = set() if getattr(cursor, "withhold", True) else {"commit", "rollback"}
            self[cursor] = cursor.close, {*connection.savepoint_ids, *ends}
            with suppress(AttributeError):  # psycopg2 has no place for it
                cursor.close = partial(self._close, cursor)
        return cursor

    def _close(self, cursor: Any) -> None:
        """Close *cursor*, as who iterates asks, if that may be here and now; else when it may.

        On another thread, or in the middle of a statement, it would wait, or ask in between. In a
        transaction that is aborted nothing is asked, and what is older than that would stay.
        """
        if (known := self.get(cursor)) is not None:
            idle = status_of(self._connection) in (0, 2)
            if idle and connections_of_thread() is self._own:
                self._end(cursor)
            else:
                known[1].add("statement")

    def end(self, *ends: str) -> None:
        """Close those that end with one of *ends*, or all. On their thread."""
        for cursor in list(self):
            with suppress(Exception):  # one is closed by the collector meanwhile, or broke
                if not ends or self[cursor][1].intersection(ends):
                    self._end(cursor)

    def _end(self, cursor: Any) -> None:
        close, _ = self.pop(cursor)
        with suppress(AttributeError):
            cursor.close = lambda: None  # no cycle is left, and nobody takes psycopg's lock again
        close()
