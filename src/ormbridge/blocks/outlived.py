"""What outlives the call that began it, and is freed in another's (a part of step 4 of a call).

An error keeps the variables of a function that failed, a cycle keeps them until it is collected. A
generator among them is suspended inside of Django's blocks, and its end acts on the connection that
its thread has by then: it would take the transaction of another call with it, or close its cursor
while another thread uses the connection. So blocks and wrappers that ended with their call are not
left a second time, and the cursors of a call that failed are closed as it ends, on its thread.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.db.transaction import Atomic

from ..core import hooks
from ..core.errors import BridgeError
from ..postgres.canceller import bounded


class Open(list[Any]):
    """What is open on a connection: Django's ``atomic_blocks``, or ``execute_wrappers``."""

    def pop(self, *index: Any) -> Any:
        """Take the last one out, unless one leaves that is none of these."""
        names = sys._getframe(1).f_locals  # noqa: SLF001 # of Django's __exit__, or execute_wrapper()
        leaving = names.get("wrapper", names.get("self"))
        if (isinstance(leaving, Atomic) or "wrapper" in names) and leaving not in self:
            raise BridgeError("what is left here has ended with its call, before this")
        return super().pop(*index)


class Cursors(weakref.WeakKeyDictionary[Any, Any]):
    """The cursors of ``iterator()`` that are open on one connection.

    With each, the claim of the call that made it, because the call itself may keep what iterates,
    and the savepoints around.
    """

    def __init__(self, connection: Any, who: Callable[[], object] | None) -> None:
        super().__init__()
        self._connection, self._who = connection, who

    def make(self) -> Any:
        """Do what Django's ``chunked_cursor()`` does, and know of the cursor."""
        connection = self._connection
        cursor = type(connection).chunked_cursor(connection)
        claim = getattr(self._who and self._who(), "_claim", None)
        self[cursor] = claim, list(connection.savepoint_ids)
        engine, options = connection.settings_dict["ENGINE"], connection.settings_dict["OPTIONS"]
        if engine == "django.db.backends.mysql" and "cursorclass" not in options:
            # It has all its rows. Its driver would ask for more, in the middle of another's call.
            cursor.close = _do_nothing
        return cursor

    def close(self, which: Callable[..., object]) -> None:
        """Close those for which *which* says so. On their thread."""
        for cursor, (claim, savepoints) in list(self.items()):
            with suppress(Exception):  # psycopg2 says so itself
                if which(cursor, claim, savepoints):
                    # Once: to do it again takes the lock of the connection.
                    close, cursor.close = cursor.close, _do_nothing
                    close()


def _do_nothing() -> None: ...


def _end_failed(own: Any) -> None:
    for connection in own.opened:
        cursors = getattr(getattr(connection, "ormbridge_witness", None), "cursors", None)
        if cursors:
            with bounded():
                cursors.close(lambda _, claim, savepoints: claim is own.running._claim)  # noqa: SLF001


hooks.fail = _end_failed
