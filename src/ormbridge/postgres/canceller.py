"""Stop what runs: cancel the statement of a call whose task was cancelled (PostgreSQL only).

A cancel request names a connection, not a statement. So the worker may not go on to another call
while one is on its way: the canceller sends it under a lock that the worker takes to finish its
call, and sends none to a worker that has another call.

Guarantees:

* no other call is hit: not the next one on the worker, nor the next user of a pooled connection;
* an event loop's thread sends nothing and waits for nothing;
* where it is not certain that a request has been carried out, the connection is discarded when the
  call ends: where sending it failed, and behind a pooler such as PgBouncer;
* a transaction whose statement was cancelled ends in a rollback, whoever swallows the error.

It is best effort in one direction only: a function between two statements is not stopped. Requests
are repeated until the call has ended, and so reach the statements that follow in the same function.
What the function awaits through ``async_to_sync`` is cancelled as asgiref does it, and no request
is sent for its statements; one that was on its way already may still reach the first of them.

A network that stalls carries no request, or no answer. So after ``BOUND`` seconds no more requests
are sent, and the sockets of connections that still wait are shut down: the driver raises, the
worker goes on without the server. That lasts until the worker is done with the call.

The beginning and the end of a block are never stopped. Once nobody wants to wait for them any more,
they have ``BOUND`` seconds as well: the event loop looks after that time (:func:`bound`), and then
again until they have ended.

Each stopped call has a thread of its own, which ends with the call: one slow request delays no
other, and a forked child has nothing to clean up.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

from django.db import connections
from django.db.models import Model, QuerySet, prefetch_related_objects
from django.db.models.manager import BaseManager
from django.db.models.query import BaseIterable, RawQuerySet
from django.db.utils import load_backend

from ..core import hooks
from ..core.call import Call
from ..core.connections import ThreadConnections, connections_of_thread
from ..core.errors import logger
from .connections import socket_of, status_of

#: Seconds that a call has to end by itself, before the first request; they double after each.
PAUSE = 0.005
#: Seconds between two looks at what was stopped, or waits in vain, at the most.
LONGEST_PAUSE = 0.1
#: What is sent to see whether a server answers: SSLRequest, see
#: postgresql.org/docs/current/protocol-message-formats.html
PROBE = struct.pack("!ii", 8, 80877103)

#: The function that sends the chunks of aiterator() to a thread.
CHUNKS = f"{BaseIterable.__qualname__}._async_generator.<locals>.next_slice"
# Of related managers, which Django makes for each relation.
_RELATED = ("add", "remove", "clear", "set")
_OWNERS = (QuerySet, RawQuerySet, Model, BaseManager)


def stop(call: Any) -> None:
    """Stop *call*, which runs and whose outcome nobody awaits. Returns at once."""
    if call.awaits is None or call.stopping or call.ended or not any(on_postgresql()):
        return
    call.stopping = True
    try:
        # A daemon: it ends with the call, for which the exit of the interpreter waits anyway, but
        # in a forked child, where the call never ends.
        threading.Thread(target=_stop, args=[call], name="ormbridge-canceller", daemon=True).start()
    except RuntimeError as error:  # no thread is left, or the interpreter exits
        if isinstance(call, Call):  # and not what is bounded()
            logger.warning("%s was cancelled, and its statement runs on: %r", str(call), error)
            bound(call)


def bound(call: Call, given_up: bool = True) -> None:
    """Have *call* wait no longer for PostgreSQL than BOUND seconds from now on. Its loop's thread.

    :param given_up: whether that holds for what runs before it, too.
    """
    call.stopping = call.stopping or given_up
    call.glances = call.glances or call.mailbox.watch(call, ThreadConnections.BOUND, glance)


def glance(calls: list[Call]) -> None:
    """Look after *calls*, which have waited too long for PostgreSQL, until they end. Their loop."""
    for call in calls:
        own = call.connections
        if own is None and call.stopping:  # what runs before it, but below a frame
            own = getattr(call.line, "connections", None)
        if own is not None:
            own.cut(call)
        if not call.closes and call.future is not None and not call.future.done():
            call.future.set_result(None)  # a beginning: it may be that it has no connection yet
        if not call.ended:
            call.glances = call.mailbox.watch(call, LONGEST_PAUSE, glance)


async def outlast(
    future: asyncio.Future[Any], call: Call | None = None
) -> asyncio.CancelledError | None:
    """Wait for *future*, whatever cancels the running task. Returns what did.

    :param call: whose it is, the beginning or the end of a block. Once the task is cancelled,
        PostgreSQL has BOUND seconds to answer; a beginning that has not started is given up.
    """
    cancelled = None
    try:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
                if call is not None and not call.closes and call.cancel():
                    break
                if call is not None and not future.done():
                    bound(call)
        return cancelled
    finally:
        cancelled = None  # its traceback holds this frame


@contextmanager
def bounded() -> Generator[None, None, None]:
    """Have the block wait no longer than BOUND seconds for PostgreSQL: nobody awaits it. Worker."""
    own = connections_of_thread()
    if own is None:  # on the thread of a synchronous frame
        yield
        return
    # No request is sent for it, which might come to what follows.
    block: Any = SimpleNamespace(awaits=[], stopping=False, calls=1, ended=False, connections=own)
    stop(block)
    try:
        yield
    finally:
        block.ended = True
        own.catch_up()


def on_postgresql() -> Iterator[str]:
    """Yield the alias of each database that is PostgreSQL."""
    for alias, settings in connections.settings.items():
        with suppress(Exception):  # its driver is not there, and so not in use
            if load_backend(settings["ENGINE"]).DatabaseWrapper.vendor == "postgresql":
                yield alias


def _stop(call: Call) -> None:
    pause, deadline = PAUSE, time.monotonic() + ThreadConnections.BOUND
    time.sleep(pause)
    while not call.ended:
        left = deadline - time.monotonic()
        if call.connections is not None and left > 0:
            _cancel_statements(call, call.connections, left)
        elif call.connections is not None and not call.awaits:
            call.connections.cut(call)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _cancel_statements(call: Call, own: Any, timeout: float) -> None:
    with own.finishing:
        # In this order: a call that has a connection open takes the lock to end, others do not.
        opened = list(own.opened)
        if call.calls or call.awaits:
            return
        for connection in opened:
            try:
                # Not where a request has failed before.
                if status_of(connection) == 1 and not own.stopped.get(connection):
                    own.stopped[connection] = None
                    _cancel_statement(connection.connection, timeout)
            except Exception as error:
                own.stopped[connection] = f"its statement could not be cancelled ({error!r})"


def _cancel_statement(raw: Any, timeout: float) -> None:
    # Both return when the server has closed the connection that carried the request: then it has
    # been carried out. See PQcancelPoll and PQcancel: postgresql.org/docs/current/libpq-cancel.html
    if hasattr(raw, "cancel_safe") and sys.modules["psycopg"].capabilities.has_cancel_safe():
        raw.cancel_safe(timeout=timeout)
        return
    # Of libpq before 17, psycopg 3.1, psycopg2: it has no limit, and most drivers stop the whole
    # process meanwhile. So see first that the server answers.
    with socket_of(raw) as own, socket.socket(own.family) as probe:
        probe.settimeout(timeout / 2)  # for each of these steps
        probe.connect(own.getpeername())
        probe.sendall(PROBE)
        probe.recv(1)
    raw.cancel()


def may_be_stopped(func: Any) -> bool:
    """Say whether *func* is behind one of Django's ``a``-methods.

    All else that asgiref calls runs to its end: sync views, middleware, handlers and signals of a
    request that is cancelled.
    """
    owner = getattr(func, "__self__", None)
    if not isinstance(owner, _OWNERS):
        return func is prefetch_related_objects or getattr(func, "__qualname__", "") == CHUNKS
    name = getattr(func, "__name__", "")
    twin = f"a{name}"
    is_djangos = hasattr(QuerySet, twin) or hasattr(Model, twin) or name in _RELATED
    return name == "_fetch_all" or (is_djangos and hasattr(owner, twin))


hooks.stop = stop
