"""Have every call of a test see the one transaction that the test rolls back.

pytest-django and Django's ``TestCase`` open a transaction on the connections of the test's own
thread. In :func:`one_transaction` these connections are lent to a worker, and every call of the
process goes to that worker: the bridge's, Django's ``a``-methods, ``channels.db``, consumers and
views, from whatever task or event loop. So all of them see the transaction, and what fixtures put
there.

Guarantees:

* calls run one at a time, because there is one connection;
* nothing closes a connection whose transaction is open;
* a connection that another thread opens is refused: what it writes would not be rolled back;
* when the block ends, no worker has the connections any more.

Calls reach the worker in two ways. :func:`.context.current_context` answers the context of the
test. And what asgiref would send to its one thread, or to that of a ``ThreadSensitiveContext``, it
looks up in two attributes of ``SyncToAsync``, which are replaced while the block lasts. A live
synchronous frame stays the innermost, as everywhere; it waits on the worker or on the test's own
thread, and these have the connections.
"""

from __future__ import annotations

import functools
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, cast

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, iscoroutinefunction
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from . import context as contexts
from .bridge import database_sync_to_async
from .call import Call
from .connections import ThreadConnections, keep_open
from .context import LeaseContext
from .ending import BridgeRunner as BridgeRunner
from .ending import close_everything, disconnect_others
from .errors import BridgeError
from .leaks import close_for_good, leases_left
from .lease import Lease
from .pool import Pool
from .process import default_pool

logger = logging.getLogger("ormbridge")

# The methods and attributes of asgiref that send a call to a thread, and where it looks them up.
_SINGLE, _BY_CONTEXT = "single_thread_executor", "context_to_thread_executor"


class TestContext(LeaseContext):
    """The context of all calls of a test: its one lease has the test's connections."""

    __test__ = False  # for pytest: not a class of tests

    def __init__(self, name: str) -> None:
        """Make a context for the connections of the calling thread."""
        super().__init__(name, holds=True, waits_once=False)
        self._lent = {connection.alias: connection for connection in connections.all()}
        self._depths = {alias: _depth(each) for alias, each in self._lent.items()}
        # Workers that have the connections.
        self._users: list[threading.Thread] = []
        self._returned = threading.Condition()

    def place(self, call: Call, anywhere: bool = False, hold: bool = True) -> None:
        """Send *call* to the worker that has the connections, also if it would go anywhere."""
        if threading.current_thread() in self._users:
            # From an event loop that a call runs by itself: its worker waits, another one must do.
            function = cast(Callable[[], Any], call.function)
            call.function = functools.partial(self._run_with_connections, function)
            call.place(default_pool(), None, anywhere=False)
        else:
            super().place(call)

    def _make_lease(self, pool: Pool, held: bool) -> Lease:
        return Lease(self, pool, held) if self.ended else _TestLease(self, pool, held)

    def _run_with_connections(self, function: Callable[[], Any]) -> Any:
        with self.lend():
            return function()

    @contextmanager
    def lend(self) -> Generator[None, None, None]:
        """Have the calling thread use the test's connections instead of its own."""
        own = {each.alias: each for each in connections.all(initialized_only=True)}
        with self._returned:
            self._users.append(threading.current_thread())
        for alias, connection in self._lent.items():
            connections[alias] = connection
        try:
            yield
        finally:
            for alias in self._lent:
                if alias in own:
                    connections[alias] = own[alias]
                else:
                    del connections[alias]
            with self._returned:
                self._users.remove(threading.current_thread())
                self._returned.notify_all()

    @contextmanager
    def in_force(self) -> Generator[None, None, None]:
        """Send all calls of the process here."""
        single, by_context = getattr(SyncToAsync, _SINGLE), getattr(SyncToAsync, _BY_CONTEXT)
        setattr(SyncToAsync, _SINGLE, self)
        setattr(SyncToAsync, _BY_CONTEXT, _Everywhere(by_context, self))
        contexts.ambient = self
        # What channels.db or a request clean up would end the transaction of the test.
        restores = [keep_open(connection) for connection in self._lent.values()]
        for connection in self._lent.values():
            connection.inc_thread_sharing()
        connection_created.connect(self._refuse_other_connection, weak=False, dispatch_uid=id(self))
        try:
            yield
        finally:
            contexts.ambient = None
            setattr(SyncToAsync, _SINGLE, single)
            setattr(SyncToAsync, _BY_CONTEXT, by_context)
            connection_created.disconnect(dispatch_uid=id(self))
            for connection in self._lent.values():
                connection.dec_thread_sharing()
            for restore in filter(None, restores):
                restore()

    def _refuse_other_connection(self, connection: BaseDatabaseWrapper, **kwargs: object) -> None:
        lent = self._lent.get(connection.alias)
        if lent is None or lent is connection or not lent.in_atomic_block:
            return
        if connection not in connections.all(initialized_only=True):
            return  # made by hand, such as connection.copy()
        close_for_good(connection)
        raise BridgeError(
            f"{threading.current_thread().name} opened a connection to {connection.alias!r}, which "
            "does not see the transaction of the test, and is not rolled back with it. Call the "
            "function through database_sync_to_async or sync_to_async, or let the test use "
            "async_transactional_db"
        )

    def end(self) -> list[str]:
        """Take the connections back from the workers.

        :returns: what the test left behind, in words; nothing if it left nothing.
        """
        with self._lock:
            self.ended = True
            leases = list(self._leases)
        left = [f"{block} was not left" for lease in leases for block in lease.open_blocks()]
        for lease in leases:
            lease.dismiss(BridgeError(f"{self.name} has ended, and the call did not run"))
        with self._returned:
            if not self._returned.wait_for(
                lambda: not self._users, default_pool().settings.timeout
            ):
                left += [
                    f"{lease} on {thread.name} still runs" for lease, thread in self._holders()
                ]
        for alias, connection in self._lent.items():
            depth = self._depths[alias]
            if depth != _depth(connection):
                left.append(f"a transaction on {alias!r} was left open")
                _cut(connection, depth)
        return left

    def _holders(self) -> list[tuple[Lease, threading.Thread]]:
        return [(each, each.worker) for each in self._leases if each.worker in self._users]


class _TestLease(Lease):
    """A lease whose worker has the test's connections."""

    def run(self, connections: ThreadConnections) -> bool:
        with cast(TestContext, self.context).lend():
            return super().run(connections)


class _Everywhere:
    """What asgiref looks up the executor of a ``ThreadSensitiveContext`` in."""

    def __init__(self, executors: Any, everywhere: Executor) -> None:
        self._executors = executors
        self._everywhere = everywhere

    def __contains__(self, context: ThreadSensitiveContext) -> bool:
        return True

    def __getitem__(self, context: ThreadSensitiveContext) -> Executor:
        return self._everywhere

    def __setitem__(self, context: ThreadSensitiveContext, executor: Executor) -> None:
        self._executors[context] = executor

    def pop(self, context: ThreadSensitiveContext, default: Any = None) -> Any:
        return self._executors.pop(context, default)


def _depth(connection: BaseDatabaseWrapper) -> int:
    return len(connection.atomic_blocks)


def _cut(connection: BaseDatabaseWrapper, depth: int) -> None:
    """Forget the transactions in *connection* beyond *depth*: who opened it rolls all back."""
    del connection.atomic_blocks[depth:]
    if depth:
        del connection.savepoint_ids[depth - 1 :]  # the outermost has none
        return
    connection.savepoint_ids = []
    connection.in_atomic_block = False
    connection.needs_rollback = False
    connection.close()


@contextmanager
def one_transaction(name: str) -> Generator[list[str], None, None]:
    """Have all calls of the process use the connections of the calling thread.

    :param name: the test, for error messages.

    Yields a list that holds, after the block, what the test left behind, in words.
    """
    context = TestContext(name)
    left: list[str] = []
    with context.in_force():
        try:
            yield left
        finally:
            left += context.end()


@contextmanager
def many_transactions() -> Generator[list[str], None, None]:
    """Wait at the end for all leases of the pool, and close all connections but the thread's own.

    Yields a list that holds, after the block, the leases that did not end, in words.
    """
    left: list[str] = []
    try:
        yield left
    finally:
        patience = default_pool().settings.timeout
        held = leases_left(patience)
        left += [f"{worker.name} is still leased, by {lease}" for worker, lease in held]
        close_everything(0.0 if held else patience)
        # What they still lock would keep Django from emptying the tables.
        for connection in connections.all(initialized_only=True) if held else ():
            if connection.vendor == "postgresql":
                with suppress(Exception):  # of an alias that the test may not use
                    disconnect_others(connection)


@asynccontextmanager
async def capture_on_commit_callbacks(
    using: str = DEFAULT_DB_ALIAS, execute: bool = False
) -> AsyncGenerator[list[Callable[[], Any]], None]:
    """Collect the functions given to ``transaction.on_commit()`` in the block.

    What Django's ``TestCase.captureOnCommitCallbacks`` is for synchronous tests.

    :param execute: run them as the block ends, those that they register too: functions on the
        worker, coroutine functions on the event loop.
    """
    callbacks: list[Callable[[], Any]] = []

    def registered() -> list[Any]:
        return list(connections[using].run_on_commit)

    seen = len(await database_sync_to_async(registered)())
    yield callbacks
    while new := (await database_sync_to_async(registered)())[seen:]:
        seen += len(new)
        for _, callback, robust in new:
            callbacks.append(callback)
            if execute:
                await _run_callback(callback, robust)


async def _run_callback(callback: Callable[[], Any], robust: bool) -> None:
    try:
        if iscoroutinefunction(callback):  # pyright: ignore[reportDeprecated]
            await callback()
        elif inspect.isawaitable(outcome := await database_sync_to_async(callback)()):
            await outcome
    except Exception:
        if not robust:
            raise
        logger.exception("on_commit() callback %r failed", callback)
