"""What is left of the package once the tests of a module are over: nothing may be."""

import gc
import time
from collections import Counter
from pathlib import Path

from asgiref.sync import SyncToAsync
from django.db import connections

from ormbridge.asgi.context import LeaseContext
from ormbridge.core.call import hosts
from ormbridge.core.worker import Leaseholder
from ormbridge.leases.generators import Iteration, _owners
from ormbridge.leases.turns import Block
from ormbridge.streaming.rows import Rows
from ormbridge.streaming.source import Source
from tests.core.gate import GUARD

KINDS = (Leaseholder, LeaseContext, Block, Rows, Source, Iteration)


def alive(*more: type) -> Counter[str]:
    """Count what there is of calls, of leases and what they are of, and of *more* kinds."""
    kinds = (*KINDS, *more)
    return Counter(kind.__name__ for kind in map(type, gc.get_objects()) if issubclass(kind, kinds))


def left() -> Counter[str]:
    """Count what is alive, and what others have for it, such as asgiref's threads of contexts."""
    found = alive()
    found["suspended generator"] = len(_owners)
    found["host of a frame"] = len(hosts)
    found["thread of a context"] = len(SyncToAsync.context_to_thread_executor)
    return +found


def nothing_is_left(module: Path) -> None:
    """See that the tests of *module* have left nothing, not even in what other threads freed last.

    :raises AssertionError: if so, which says what.
    """
    for connection in connections.all(initialized_only=True):
        connection.rollback_exc = None  # Django leaves it there, with all that its traceback has
    deadline = time.monotonic() + GUARD
    while found := left():
        gc.collect()
        if not (found := left()):
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"{module} left {dict(found)} behind")
        time.sleep(0.01)
