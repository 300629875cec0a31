"""One call of a function: what waits for a thread, runs on it and comes back (a lease of one call).

It is decided once, by :meth:`Call.claim`, whether a call starts, and whoever claims it first
decides: the worker runs it, the awaiting task cancels it, the pool refuses it. After that the
others come too late.

Where a call waits: in the pool's line, for a worker; below a synchronous frame, among what asgiref
has for the frame's thread; in a route (``leases/``), for its turn on that one's thread. Each wait
ends with the worker, the thread or the turn, when the call is cancelled, after ``TIMEOUT`` seconds
(below a frame: if a lease has its thread, see :data:`hosts`), and at exit. The attributes under
"For the wings" are theirs.

**Cancellation.** A call that has not started never starts. One that runs keeps its worker until the
function returns; its outcome is then dropped, because the awaiting task has gone on. Where that is
allowed and the database is PostgreSQL, its statement is cancelled (``postgres/canceller.py``).
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from asgiref.current_thread_executor import CurrentThreadExecutor
from django.db import connections

from . import hooks
from .asgiref import submit
from .cleaning import refresh_own_thread
from .connections import ThreadConnections, here, in_transaction
from .errors import PoolTimeout, logger
from .mailbox import Expire, Mailbox
from .pool import Pool
from .stats import PoolStats
from .worker import Leaseholder, current

#: What a thread runs.
Job = Callable[[], Any]


class Line(Protocol):
    """Where calls wait: the pool's line for a worker, or a lease's for a turn on its worker."""

    def forget(self, call: Any, /) -> object:
        """Take *call*, which gave up, out of the line."""

    def time_out(self, call: Any, seen: dict[object, PoolStats], /) -> PoolTimeout:
        """Return the error of *call*, which has waited for too long.

        :param seen: snapshots of pools, for all that time out at once.
        """
        ...


#: The leases that have the thread of a synchronous frame, for the calls that wait for it meanwhile.
hosts: weakref.WeakKeyDictionary[CurrentThreadExecutor, Line] = weakref.WeakKeyDictionary()


class Call(Leaseholder):
    """One call of a synchronous function, made from an event loop."""

    def __init__(self, function: Job, name: Callable[..., Any] | str, mailbox: Mailbox) -> None:
        """Make a call that has no thread yet.

        :param function: what the thread runs.
        :param name: the user's function, which error messages name, or what to call it.
        """
        # What super().__init__() does, which is one in a hundred instructions of a call.
        self._claim = threading.Lock()
        self.function: Job | None = function
        self.name = name
        self.mailbox = mailbox
        self._result: Any = None
        self._error: BaseException | None = None
        #: The route of the code that makes it.
        self.route: object = None
        #: Whether it must not join a transaction on the thread where it runs.
        self.stays_out = False
        # For the wings
        #: Whether its route is a block that it closes: it waits for the turn as long as it has to.
        self.closes = False
        #: The generator that the function was given, if that, suspended, needs its connection
        #: again; see :mod:`.generators`.
        self.iteration: Any = None
        #: As :attr:`watched`: those that have waited for PostgreSQL for too long.
        self.glances: dict[Any, float] = {}
        # As it waits, runs and ends
        #: What the function awaits through async_to_sync. None says to the canceller that the call
        #: is never stopped; :func:`.go_on`, which cancels that all the same, has the list before.
        self.awaits: list[asyncio.Task[Any]] | None = None
        #: The worker's, once it runs there.
        self.connections: ThreadConnections | None = None
        #: Whether it is to be stopped.
        self.stopping = False
        #: Whether its thread is done with it, its clean-up included, or never begins.
        self.ended = False
        #: Where it waits, and has to be forgotten if it is given up.
        self.line: Line | None = None
        #: The calls whose time is measured, if this is one of them; else nothing.
        self.watched: dict[Any, float] = {}
        #: What the caller awaits; None once the outcome is there, or if the loop is closed. Else it
        #: is used on the loop's thread only.
        self.future: asyncio.Future[Any] | None = mailbox.loop.create_future()

    def __str__(self) -> str:
        return name_of(self.name)

    # On the loop's thread, but for cancel(), which is for any

    def enter(self, frame: CurrentThreadExecutor, timeout: float) -> bool:
        """Get in line for the thread of *frame*, a synchronous frame above the caller.

        :param timeout: seconds to wait there.
        :returns: whether it is; False if the frame has ended, on another loop's thread.
        """
        self.asked = time.monotonic()
        submitted = submit(frame, self.run_on_frame)
        if submitted and (host := hosts.get(frame)) is not None:
            self.line = host
            self.watch(timeout)
        return submitted

    def place(self, pool: Pool, lease: Leaseholder | None = None, patient: bool = True) -> bool:
        """Have a worker of *pool* run the call, or its *lease*.

        :param patient: whether it may wait for one.
        :returns: whether it waits.
        :raises PoolTimeout: if it may not, or only a deadlock could come of waiting.
        """
        # Who has a worker never waits for a second one. A fork, or new settings, may have left it
        # a worker of another pool.
        is_second = here.worker is not None and here.worker.pool is pool
        patient = patient and not is_second
        if pool.take(lease or self, patient):
            return False
        if not patient:
            self.cancel()
            raise PoolTimeout(
                f"{self} is called from an event loop started on {current().name}, and no other "
                "worker is free; waiting for one while holding one could deadlock. Use "
                "async_to_sync in place of asyncio.run [loop-on-worker]"
                if is_second
                else pool.stats().shortage(0.0)
            )
        self.line = pool if lease is None else self.line
        self.watch(pool.settings.timeout)
        self.mailbox.look_after(pool.look)
        return True

    def cancel(self) -> bool:
        """Give the call up. False if it has started: then its thread runs on. Any thread.

        What is left to do then is :data:`.hooks.stop`.
        """
        if not self.claim():
            return False
        self.ended = True
        if self.line is not None:
            self.line.forget(self)
        self.watched.pop(self, None)
        return True

    def watch(self, seconds: float, expire: Expire | None = None) -> None:
        """See to it that the call waits in its line no longer than *seconds*.

        :param expire: called with it, among others, when it has; else it is refused.
        """
        self.watched = self.mailbox.watch(self, seconds, expire or _expire)

    def deliver(self) -> None:
        """Step 6: hand the outcome to the caller."""
        self.watched.pop(self, None)
        self.glances.pop(self, None)
        # The traceback of an error holds run(), and so this call: keep no reference back.
        future, self.future = self.future, None
        error, self._error = self._error, None
        if future is None or future.done():
            if error is not None:
                logger.debug("%s failed after its caller gave up: %r", str(self), error)
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(self._result)

    # On the thread that runs it

    def run(self, own: ThreadConnections | None = None, prepare: Job | None = None) -> bool:
        """Run *prepare* and the function; keep the outcome. Returns whether they succeeded.

        :param own: the connections of the thread, if it is a worker's.
        """
        function, self.function = self.function, None
        if own is not None:
            own.running, self.connections = self, own
            if own.opened:
                own.settle()
        try:
            if prepare is not None:
                prepare()
            if self.stays_out:
                self._stay_out()
            self._result = function()  # type: ignore[misc]
        except StopIteration as error:
            # A future can't hold it, and a coroutine can't raise it.
            self._error = RuntimeError(f"{self} raised StopIteration")
            self._error.__cause__ = error
        except BaseException as error:
            self._error = error
        self.calls = 1
        if own is not None:
            own.running = None
            if own.opened:
                own.settle()
        return self._error is None

    def _stay_out(self) -> None:
        if in_transaction(connections.all(initialized_only=True)):
            raise PoolTimeout(
                f"{self} is called with thread_sensitive=False in a transaction on "
                f"{current().name}, which it must not join, and no other worker "
                "is free. Leave thread_sensitive out to join the transaction, or make the call "
                "after it [not-in-transaction]"
            )

    def finish(self, may_wait: bool = False) -> None:
        """Send the outcome to the caller's loop; see :meth:`.Mailbox.post`. Any thread."""
        self.ended = True
        if self.connections is not None and self.connections.opened:
            self.connections.catch_up()
        if self.mailbox.loop.is_closed():
            self.future = None  # it knows who would have had the outcome
        elif self.loop is None or not hooks.deliver(self):
            self.mailbox.post(self.deliver, may_wait)

    def refuse(self, error: BaseException, claimed: bool = False) -> None:
        """Fail the call with *error*, unless somebody else claimed it. Any thread.

        :param claimed: whether who calls this has.
        """
        if claimed or self.cancel():
            self._error = error
            self.finish()

    def run_on_frame(self) -> None:
        """Run on the thread of a synchronous frame, which owns the connections there."""
        self.awaits = None  # what runs there is never stopped
        if self.claim():
            # As part of the call: what Ctrl-C interrupts must still come to the caller.
            self.run(prepare=refresh_own_thread)
            self.finish()


def name_of(named: Any) -> str:
    """Return what messages call *named*: a function, or a name already."""
    if isinstance(named, str):
        return named
    while isinstance(named, functools.partial):
        named = named.func
    try:
        return f"{named.__module__}.{named.__qualname__}"
    except Exception:  # an object; its repr is the user's, and may query the database or fail
        return f"{type(named).__module__}.{type(named).__qualname__}"


def _expire(calls: list[Call]) -> None:
    """Refuse *calls*, which have waited too long. Runs on the thread of their loop."""
    seen: dict[object, PoolStats] = {}
    for call in [call for call in calls if call.cancel()]:
        call.refuse(call.line.time_out(call, seen), claimed=True)  # type: ignore[union-attr]
