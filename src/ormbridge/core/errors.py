"""The errors of the bridge, and its logger.

::

    BridgeError (RuntimeError)
    ├── PoolTimeout          no worker became free within ORMBRIDGE["TIMEOUT"] seconds
    ├── PoolClosed           the interpreter is exiting and takes no new calls
    ├── LeaseClosed          the block that the call belongs to has ended
    └── TransactionAborted   an atomic() block ended well, and nothing of it was saved

Bad settings are Django's ``ImproperlyConfigured``. What the called function raises reaches the
caller as it is, with its traceback.
"""

from __future__ import annotations

import logging

from django.db.transaction import TransactionManagementError

#: The address of the page of messages, once it has one. The code that ends a message is an anchor.
MESSAGES = ""

#: Where the bridge tells what it cannot raise, because nobody awaits it.
logger = logging.getLogger("ormbridge")


class BridgeError(RuntimeError):
    """The base of every error that the bridge itself raises."""

    def __str__(self) -> str:
        text = super().__str__()
        code = text[text.rfind("[") + 1 : -1]
        return f"{text} {MESSAGES}#{code}" if MESSAGES and text.endswith("]") else text


class PoolTimeout(BridgeError):
    """A call could not have a worker, or its turn on one, in time, and never started.

    Raised in the awaiting task when it has waited ``ORMBRIDGE["TIMEOUT"]`` seconds, or at once
    where waiting could only deadlock, or the call must not join the transaction on its thread. The
    message names who holds the workers and for how long. Also raised at once where the system
    starts no thread, and the pool has none.
    """


class PoolClosed(BridgeError):
    """A call was made or still waited when the interpreter began to exit. It never started."""


class LeaseClosed(BridgeError):
    """A call belongs to an ``atomic()`` or ``pinned()`` block that has ended. It never started.

    Raised in a task that was started inside the block and outlived it. To run the call elsewhere
    would be to run it outside the transaction that it was written for.
    """


class TransactionAborted(BridgeError, TransactionManagementError):
    """An ``atomic()`` block ended without an error, and yet its transaction was lost before.

    A statement in it had failed, the code caught the error, and the database, or Django, had given
    the transaction up. The block was rolled back, and functions given to ``on_commit()`` do not
    run. The message names the statement and the line that caught the error, which is the cause.
    """


# In a traceback, and pickled, they go by the name that users import.
for _error in (BridgeError, PoolTimeout, PoolClosed, LeaseClosed, TransactionAborted):
    _error.__module__ = "ormbridge"
