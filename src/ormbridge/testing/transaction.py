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
* code on an event loop finds the test's connection in ``connections``, so that Django's own
  ``CaptureQueriesContext`` counts around awaits;
* when the block ends, no worker has the connections any more.

Calls reach the worker because all code seems to be on one route, that of the test: where it is
looked up, the variable is replaced while the block lasts. A live synchronous frame stays the
innermost, as everywhere; it waits on the worker or on the test's own thread, and these have the
connections.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial, partialmethod
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.utils.connection import BaseConnectionHandler

from ..asgi import sync_to_async as sync_to_async  # calls of asgiref, too
from ..asgi.context import LeaseContext, refuse_inside
from ..blocks.witness import CLEAN_UP
from ..core import route as routes
from ..core.call import Call
from ..core.cleaning import close_if_old
from ..core.connections import ThreadConnections
from ..core.errors import BridgeError, logger
from ..core.process import default_pool
from ..leases.lease import Lease
from ..leases.turns import Block, outwards
from .ending import close_for_good, depths


class _TestLease(Lease):
    """A lease whose worker has the test's connections."""

    is_of_test = True

    def run(self, connections: ThreadConnections) -> bool:
        users, own = cast(TestContext, self.context).users, threading.current_thread()
        returned = users[own] = Future()
        try:
            return super().run(connections)
        finally:
            # After the calls, and before the worker cleans up: that is for its own connections.
            del users[own]
            returned.set_result(None)


class TestContext(LeaseContext):
    """The context of all calls of a test: its one lease has the test's connections."""

    __test__ = False  # for pytest: not a class of tests
    is_alone = True
    lease_type = _TestLease

    def __init__(self, name: str) -> None:
        """Make a context for the connections of the calling thread."""
        super().__init__(name, holds=True)
        #: The test's connections, by alias.
        self.lent = {connection.alias: connection for connection in connections.all()}
        self._depths = depths()
        #: Workers that have the connections, instead of their own, and what tells of their return.
        self.users: dict[threading.Thread, Future[None]] = {}
        # For the event loops that calls run by themselves, by the worker that waits there.
        self._below: dict[threading.Thread, TestContext] = {}

    def _here(self) -> TestContext:
        """Return the context for the calls of a loop that the calling thread runs."""
        own = threading.current_thread()
        if self.ended or own not in self.users:
            return self
        if own not in self._below:  # its worker waits, another one must do
            below = self._below[own] = TestContext(self.name)
            below.users, below._below = self.users, self._below
        return self._below[own]

    def current(self, variable: ContextVar[routes.Route | None]) -> routes.Route:
        """Return the route of the running code, where *variable* has its own word for that."""
        route = variable.get()
        return route if isinstance(route, Block) else self._here()

    def place(self, call: Call, hold: bool = True) -> None:
        """Send *call* to the worker that has the connections."""
        refuse_inside(call.route, call)
        if call.awaits is not None:  # where it would be stopped elsewhere
            cast("asyncio.Future[Any]", call.future).add_done_callback(partial(_runs_on, call))
        super(TestContext, self._here()).place(call)

    def refuse_other(self, connection: BaseDatabaseWrapper, **kwargs: object) -> None:
        """Refuse *connection*, which was opened while the test runs, if it was not lent by it.

        :raises BridgeError: if the test has a transaction that it does not see.
        """
        lent = self.lent.get(connection.alias)
        by_hand = connection not in connections.all(initialized_only=True)  # connection.copy()
        if by_hand or lent is None or lent is connection or not lent.in_atomic_block:
            return
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
        leases: list[Lease] = []
        for context in (self, *self._below.values()):
            with context._lock:  # noqa: SLF001 # its own class
                context.ended = True
                leases += context._leases  # noqa: SLF001
        left = [f"{block} was not left" for lease in leases for block in lease.open_blocks()]
        for lease in leases:
            lease.dismiss(BridgeError(f"{self.name} has ended, and the call did not run"))
        wait(list(self.users.values()), default_pool().settings.timeout)
        running = [(each, each.thread) for each in leases if each.thread in self.users]
        left += [f"{lease} on {thread.name} still runs" for lease, thread in running]
        for alias, connection in self.lent.items():
            depth = self._depths[alias]
            if depth != len(connection.atomic_blocks):
                left.append(f"a transaction on {alias!r} was left open")
                for block in reversed(connection.atomic_blocks[depth:]):
                    with suppress(Exception):  # the connection broke
                        block.__exit__(BridgeError, None, None)
        return left


_check = Block.check


def _check_inside(block: Block, call: object) -> None:
    *_, outermost = outwards(block)
    if not isinstance(outermost.parent, TestContext):
        raise BridgeError(
            f"{call} is called in {outermost}, which was opened before the test, and so is not "
            "in its transaction: what it writes would stay after the test. Open the block in "
            "the test, or in a fixture of the same scope that uses async_db"
        )
    _check(block, call)


def _find(handler: BaseConnectionHandler[Any], context: TestContext, alias: str) -> Any:
    """Return what ``connections[alias]`` is: on a worker and an event loop, the test's."""
    # Others may be made for other databases.
    lent = context.lent if handler is connections else {}
    # On an event loop, Django would make one for the task that asks, which nobody may use.
    on_loop = asyncio._get_running_loop() is not None  # noqa: SLF001 # it is exported
    if alias in lent and (on_loop or threading.current_thread() in context.users):
        return lent[alias]
    return BaseConnectionHandler.__getitem__(handler, alias)


def _ensure_connection(connection: BaseDatabaseWrapper) -> None:
    # Django's own objects to an event loop, also where there is nothing to do.
    if connection.connection is None:
        type(connection).ensure_connection(connection)


def _runs_on(call: Call, future: asyncio.Future[Any]) -> None:
    """Say why *call* is not stopped, if *future* was cancelled while it runs."""
    if future.cancelled() and call.connections is not None and not call.calls:
        logger.warning(
            "%s was cancelled, and runs to its end: the transaction of the test would be lost with "
            "its statement. With async_transactional_db it is stopped where the database can",
            str(call),
        )


@contextmanager
def one_transaction(name: str, alone: bool = True) -> Generator[list[str], None, None]:
    """Have all calls of the process use the connections of the calling thread.

    Yields a list, which holds after the block what the test left behind.

    :param name: the test, for error messages.
    :param alone: whether to refuse other connections.
    """
    context = TestContext(name)
    left: list[str] = []
    with ExitStack() as stack:
        patch: Any = mock.patch.object
        real = routes.current_route
        get = partial(context.current, real)
        variable = SimpleNamespace(get=get, set=real.set, reset=real.reset)
        stack.enter_context(patch(routes, "current_route", variable))
        stack.enter_context(patch(type(connections), "__getitem__", partialmethod(_find, context)))
        for connection in context.lent.values():
            # What channels.db or a request clean up would end the transaction of the test.
            stack.enter_context(patch(connection, CLEAN_UP, partial(close_if_old, connection)))
            ensure = partial(_ensure_connection, connection)
            stack.enter_context(patch(connection, "ensure_connection", ensure))
            connection.inc_thread_sharing()
            stack.callback(connection.dec_thread_sharing)
        if alone:
            stack.enter_context(patch(Block, "check", _check_inside))
            connection_created.connect(context.refuse_other, weak=False)
            stack.callback(connection_created.disconnect, context.refuse_other)
        stack.callback(lambda: left.extend(context.end()))
        yield left
