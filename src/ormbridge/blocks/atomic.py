"""Transactions in async code: ``atomic()``.

It runs Django's own ``transaction.atomic`` on the thread of a block (``pinned.py``), entering and
leaving it as calls in line there.

Guarantees:

* every call in the block is in the transaction;
* a block that ends without an error has committed, or was told to roll back with
  ``set_rollback(True)``; where the transaction was lost before, it raises ``TransactionAborted``;
* leaving a block is a call in line, not a task: nothing that cancels tasks can remove it;
* when ``async with`` raises or returns, the transaction has ended.

**Cancellation.** Entering and leaving are waited for, whatever cancels the waiting task. A block
whose entering was cancelled is undone first. A commit that was sent stands, then the cancellation
goes on. But PostgreSQL has ``BOUND`` seconds to answer: then its connection is broken, and nobody
knows what became of a commit; a beginning is left to be undone when it has ended.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar, cast, overload

from django.db import transaction

from ..core.bridge import DatabaseSyncToAsync
from ..core.call import Call
from ..core.cleaning import keep_open
from ..core.errors import BridgeError, TransactionAborted
from ..core.mailbox import mailbox_of
from ..leases.lease import Lease
from ..leases.turns import Owner, undo
from ..postgres.bounds import bound, outlast
from .on_commit import Callbacks
from .pinned import BlockManager, Entered
from .witness import Witness, attend, witness_of

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Atomic(BlockManager):
    """What :func:`atomic` returns."""

    _name = "atomic"
    _exclusive = True

    def __init__(self, using: str | None, savepoint: bool, durable: bool) -> None:
        super().__init__()
        self._options = using, savepoint, durable

    async def _begin(self, entered: Entered) -> None:
        work = entered.work = _Transaction(entered, *self._options)
        name = f"the beginning of {entered.block}"
        call, future = _make_call(lambda: work.begin(cast(Lease, call.line)), name, entered)
        call.route = entered.block.parent
        try:
            entered.block.base.place(call)
            cancelled = await outlast(future, call, gives_up=True)
            if cancelled is not None:
                if future.done():
                    future.exception()  # or it is reported as never seen
                begun, work.begun = work.begun, False
                if begun:
                    await self._end(entered, type(cancelled))
                raise cancelled
            future.result()
        except BaseException:
            if not call.cancel() and not work.abandon():  # a coroutine that is freed or interrupted
                entered.is_freed = True
                await self._end(entered, RuntimeError)
            entered.give_back()
            raise
        finally:
            cancelled = None  # its traceback holds this frame

    async def _end(self, entered: Entered, exc_type: type[BaseException] | None) -> None:
        block, work = entered.block, cast(_Transaction, entered.work)
        block.close()
        await entered.step_out()
        call, future = _make_call(lambda: work.end(exc_type), f"the end of {block}", entered)
        call.route, call.closes = block, True
        try:
            if entered.is_freed:
                entered.put_later(call)
                return
            accepted = cast(Owner, block.lease).put(call)
            # Where it was rolled back already, its end must not touch the connection.
            if (block.undone or not accepted) and call.cancel():
                future.set_exception(block.lost())
            if exc_type is not None:
                bound(call, issubclass(exc_type, (asyncio.CancelledError, TimeoutError)))
            cancelled = await outlast(future, call)
        finally:
            entered.work = None  # no cycle is left
            entered.give_back()
        error = future.exception()  # looked at: where the block itself failed, nobody else does
        try:
            try:
                if error is not None and not (block.undone and exc_type is not None):
                    raise error
            finally:
                await work.callbacks.run(cancelled is not None)
            if cancelled is not None:
                raise cancelled
        except BaseException as failure:
            if cancelled in (None, failure):
                raise
            raise cancelled from failure
        finally:
            cancelled = error = None  # their tracebacks hold this frame


class _Transaction:
    """Django's ``Atomic`` of one block. All but the constructor runs on the lease's thread."""

    def __init__(self, entered: Entered, using: str | None, savepoint: bool, durable: bool) -> None:
        self._entered = entered
        self._block = entered.block
        self._using = using
        self._atomic = transaction.Atomic(using, savepoint, durable)
        self._witness: Witness | None = None
        self._restores: list[Callable[[], object]] = []
        self.begun = False
        self._decided = threading.Lock()  # taken once: by the beginning, or by abandon()
        self.callbacks = Callbacks(self._block)

    def abandon(self) -> bool:
        """Have a beginning that still runs undone as it ends. False if the block is open. Loop."""
        return self._decided.acquire(blocking=False) or not self.begun

    def begin(self, lease: Lease) -> None:
        """Begin the transaction or savepoint."""
        self._atomic.__enter__()
        if not self._decided.acquire(blocking=False) or self._entered.loop.is_closed():
            self._atomic.__exit__(RuntimeError, None, None)
            self._entered.give_back(end=False)
            return
        connection = transaction.get_connection(self._using)
        # Not where the connection is a worker's, or a block around this one has done it.
        self._restores = [each for each in (keep_open(connection), attend(connection)) if each]
        self._witness = cast(Witness, witness_of(connection))
        self._witness.blocks += 1
        self._block.undo = functools.partial(self._exit, RuntimeError)  # type: ignore[method-assign]
        self._block.lease = lease
        lease.line.open(self._block)
        self.begun = True

    def end(self, exc_type: type[BaseException] | None) -> None:
        """Commit, or roll back where *exc_type* says that the block failed."""
        line = cast(Owner, self._block.lease).line
        failure: BaseException | None = self._block.overdue
        try:
            undo(line.inside(self._block), f"{self._block} could not wait any longer for it")
            if exc_type is None and failure is None and (failure := self._lost()) is None:
                self.callbacks.prepare(transaction.get_connection(self._using))
            self._exit(exc_type or (type(failure) if failure is not None else None))
        finally:
            line.close(self._block)
            self._entered.give_back(end=False)  # the worker is free before the caller goes on
        if failure is not None:
            raise failure

    def _lost(self) -> TransactionAborted | None:
        connection = transaction.get_connection(self._using)
        lost = cast(Witness, self._witness).loss(connection.needs_rollback)
        if lost is None:
            return None
        why, error = lost
        if not isinstance(error, BridgeError):  # such as a cancellation: that says what to do
            why += ". Put what may fail into an atomic() of its own, and catch the error around it"
        failure = TransactionAborted(
            f"{self._block} ended without an error, and nothing of it was saved: {why} "
            "[nothing-saved]"
        )
        failure.__cause__ = error
        return failure

    def _exit(self, exc_type: type[BaseException] | None) -> None:
        try:
            self._atomic.__exit__(exc_type, None, None)
        finally:
            cast(Witness, self._witness).blocks -= 1
            for restore in self._restores:
                restore()
            self._witness = None  # no cycle is left
            del self._block.undo


def _make_call(
    function: Callable[[], None], name: str, entered: Entered
) -> tuple[Call, asyncio.Future[Any]]:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # the coroutine is being freed
        loop = entered.loop
    bridged = DatabaseSyncToAsync(function)
    job = bridged.job(loop, [], contextvars.copy_context(), function)
    call = Call(job, name, mailbox_of(loop))
    return call, cast("asyncio.Future[Any]", call.future)


@overload
def atomic(
    using: Callable[_P, Coroutine[Any, Any, _R]],
) -> Callable[_P, Coroutine[Any, Any, _R]]: ...


@overload
def atomic(using: str | None = None, savepoint: bool = True, durable: bool = False) -> Atomic: ...


def atomic(using: Any = None, savepoint: bool = True, durable: bool = False) -> Any:
    """Have everything in the block in one transaction: Django's ``atomic`` for async code.

    ``async with atomic():``, or ``@atomic`` and ``@atomic(…)`` on coroutine functions. Calls of the
    bridge, Django's ``a``-methods, ``async for`` over a queryset and ``sync_to_async`` run on one
    worker, one at a time, in the transaction. It is committed as the block ends, and rolled back on
    any exception, cancellation included. Functions given to ``transaction.on_commit()`` run on the
    worker after the commit; coroutine functions are then awaited on the event loop.

    Tasks started in the block are inside. While it is the innermost block on its worker, only its
    own calls run there: an ``atomic()`` in another task, or a call beside the block, waits until it
    has ended, and raises :exc:`PoolTimeout` after ``TIMEOUT`` seconds.

    Under a live synchronous frame (Django's ``TestCase``, a sync view) all of this happens on that
    frame's thread.

    **Cancellation.** A cancelled block is rolled back, after the call that runs has ended. If the
    commit was sent already, it stands, and then ``CancelledError`` goes on. If PostgreSQL does not
    answer within four seconds, its connection is broken: then a commit may or may not have
    happened.

    :param using: the alias of the database.
    :param savepoint: whether a nested block makes a savepoint.
    :param durable: whether to refuse to be nested (``RuntimeError``).
    :raises LeaseClosed: in a task that outlived a block around it.
    :raises TransactionAborted: as the block ends, if its transaction was lost before: by a
        statement that failed, whose error the code has caught.
    :raises PoolTimeout: if there is no worker, or no turn on it, within ``TIMEOUT`` seconds.
    :raises RuntimeError: in an async generator, as :func:`pinned`.

    The rest is as in `Django
    <https://docs.djangoproject.com/en/stable/topics/db/transactions/#django.db.transaction.atomic>`_.
    """
    if callable(using):
        return Atomic(None, savepoint, durable)(cast(Any, using))
    return Atomic(using, savepoint, durable)
