"""Find what a test leaves behind: connections, leases and transactions, and who opened them.

A connection is expected on the workers of the pool, on the thread of the test, and on the one
thread that asgiref has for a process. One that is open on any other thread when the test has ended
is a leak: nothing will use or close it. So is a worker that is not free, and a transaction that is
still open.
"""

from __future__ import annotations

import inspect
import re
import sys
import sysconfig
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from traceback import walk_stack
from typing import Any
from unittest import mock

from asgiref.sync import SyncToAsync
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from ormbridge.blocks.witness import MACHINERY, package_of
from ormbridge.core.cleaning import transaction_open
from ormbridge.core.errors import BridgeError
from ormbridge.core.pool import Pool
from ormbridge.core.worker import Leaseholder, Worker
from ormbridge.testing.ending import GRACE, close_for_good, depths, leases_left, places

# Frames of a stack that are shown, at the most.
_FRAMES = 4

# Packages whose lines do not say who opened a connection, and where Python's own are: an app may
# have the name of one.
_LIBRARY = (sysconfig.get_path("stdlib"), "<")
_TESTING = re.compile(r"__main__|__channelexec__|_?pytest\w*|pluggy|anyio|xdist|execnet")


def place() -> str:
    """Say where the calling thread is: in which lines, the innermost first.

    Lines of Django, asgiref, the bridge, pytest and Python's library are left out.
    """
    lines: list[str] = []
    for frame, line in walk_stack(inspect.currentframe()):
        code, package = frame.f_code, package_of(frame)
        pythons = package in sys.stdlib_module_names and code.co_filename.startswith(_LIBRARY)
        if not (package in MACHINERY or pythons or _TESTING.fullmatch(package)):
            lines.append(f"{code.co_filename}:{line} in {code.co_qualname}")
    return ", called from ".join(lines[:_FRAMES])


def remember_places() -> None:
    """Remember from now on where each connection to PostgreSQL is opened."""
    connection_created.connect(_remember, dispatch_uid="ormbridge.leaks")


def _remember(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
    if connection.vendor == "postgresql":
        with suppress(Exception):  # another driver
            pid = connection.connection.info.backend_pid
            where = place() or "no line of yours"
            places[pid] = f"opened on {threading.current_thread().name} at {where}"


def _noted(
    opened: list[tuple[BaseDatabaseWrapper, threading.Thread, str]], taken: dict[int, str]
) -> ExitStack:
    """Return a block in which it is noted what is *opened*, and where leases ask for a worker."""
    # Where the function that runs on a thread of an executor was sent there.
    sent = threading.local()
    take, submit = Pool.take, ThreadPoolExecutor.submit

    def note_connection(connection: BaseDatabaseWrapper, **kwargs: object) -> None:
        where = place() or getattr(sent, "place", "") or "a place that is not yours"
        opened.append((connection, threading.current_thread(), where))

    def noted_take(pool: Pool, lease: Leaseholder, wait: bool = True) -> bool:
        taken[id(lease)] = place()
        return take(pool, lease, wait)

    def noted_submit(executor: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        return submit(executor, run, place(), function, args, kwargs)

    def run(where: str, function: Any, args: Any, kwargs: Any) -> Any:
        sent.place = where
        return function(*args, **kwargs)

    block = ExitStack()
    block.enter_context(mock.patch.object(Pool, "take", noted_take))
    block.enter_context(mock.patch.object(ThreadPoolExecutor, "submit", noted_submit))
    connection_created.connect(note_connection, weak=False)
    block.callback(connection_created.disconnect, note_connection)
    return block


def _look() -> tuple[threading.Thread, list[str]]:
    """Return the calling thread, and the aliases that are in a transaction there."""
    opened = [each for each in connections.all(initialized_only=True) if each.connection]
    return threading.current_thread(), [each.alias for each in opened if transaction_open(each)]


@contextmanager
def watched() -> Generator[list[str], None, None]:
    """Yield a list that holds, after the block, what was left behind in it, in words.

    It is ended as far as that is possible.
    """
    own, before = threading.current_thread(), depths()
    opened: list[tuple[BaseDatabaseWrapper, threading.Thread, str]] = []
    taken: dict[int, str] = {}
    found: list[str] = []
    with _noted(opened, taken):
        yield found
    for worker, lease in leases_left(GRACE):
        where = taken.get(id(lease)) or "a place that is not yours, or before the test"
        found.append(f"{worker.name} is still leased, by {lease}, taken at {where}")
        lease.dismiss(BridgeError("the test that made the call has ended"))
    for alias, depth in depths().items():
        if depth > before.get(alias, 0):
            found.append(f"a transaction on {alias!r} is still open on {own.name}")
    of_asgiref: threading.Thread | None = None
    try:
        of_asgiref, aliases = SyncToAsync.single_thread_executor.submit(_look).result(GRACE)
        of_it = "is still open on asgiref's thread"
        found += [f"a transaction on {alias!r} {of_it}" for alias in aliases]
    except TimeoutError:
        found.append("asgiref's thread still runs a function")
    for connection, thread, where in opened:
        is_expected = isinstance(thread, Worker) or thread in (own, of_asgiref)
        if connection.connection is not None and not is_expected:
            found.append(
                f"a connection to {connection.alias!r} is still open on {thread.name}, "
                f"which is no worker, opened at {where}"
            )
            connection.inc_thread_sharing()
            close_for_good(connection)
