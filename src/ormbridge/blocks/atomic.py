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
import functools
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, overload

from django.db import DEFAULT_DB_ALIAS, connections, transaction

from ..core.bridge import DatabaseSyncToAsync
from ..core.call import Call
from ..core.errors import TransactionAborted, logger
from ..core.mailbox import mailbox_of
from ..postgres.canceller import bound, outlast
from .on_commit import Callback, await_callbacks, prepare
from .pinned import BlockManager, Function, OpenBlock
from .witness import Witness, attend


class AtomicBlock(OpenBlock):
    """A block of :func:`atomic`: Django's ``Atomic``, on the thread of the block's calls."""

    alias: str

    def __init__(self, using: str | None, savepoint: bool, durable: bool, name: str) -> None:
        super().__init__(name, using or DEFAULT_DB_ALIAS)
        self._atomic = transaction.Atomic(using, savepoint, durable)
        self._witness: Witness | None = None  # while the transaction is open
        self._decided = threading.Lock()  # taken once: by the beginning, or by who gives it up
        self._callbacks: list[Callback] = []

    async def begin(self) -> None:
        """Begin the transaction or savepoint."""
        call: Any = self._make_call(lambda: self._begin(call), "beginning")
        call.route, future = self.parent, call.future
        cancelled = None
        try:
            self.base.place(call)
            cancelled = await outlast(future, call)
            if cancelled is not None:
                raise cancelled
            future.result()
        except BaseException as error:
            if future.done():
                future.exception()  # or it is reported as never seen
            self.is_freed = cancelled is None  # a coroutine that is freed, or interrupted
            # A beginning that still runs is undone as it ends.
            if not (call.cancel() or self._decided.acquire(blocking=False)):
                await self.end(type(error))
            self.give_back()
            raise
        finally:
            cancelled = None  # its traceback holds this frame

    async def end(self, exc_type: type[BaseException] | None) -> None:
        """Commit, or roll back where *exc_type* says that the block failed."""
        call: Any = self._make_call(lambda: self._end(exc_type), "end")
        call.route, call.closes, future = self, True, call.future
        try:
            if self.is_freed and self.frame is not None:  # in the middle of anything: later
                with suppress(RuntimeError):  # the loop is closed, and so the frame has ended
                    self.loop.call_soon_threadsafe(self.lease.put, call)
                return
            # Where its loop was closed, what waits there for the next call ends now.
            accepted = self.lease.put(call) or self.lease.look()
            if self.is_freed:
                return
            # Where it was rolled back already, its end must not touch the connection.
            if (self.undone or not accepted) and call.cancel():
                future.set_exception(self.lost())
            if exc_type is not None:
                bound(call, issubclass(exc_type, (asyncio.CancelledError, TimeoutError)))
            cancelled = await outlast(future, call)
        finally:
            self.give_back()
        failure = future.exception()  # looked at: where the block itself failed, nobody else does
        if exc_type is not None and issubclass(exc_type, asyncio.CancelledError) and failure:
            logger.warning("%s was cancelled, and its rollback failed: %r", str(self), failure)
            failure = None
        elif exc_type is not None and self.undone:
            failure = None
        try:
            try:
                if failure is not None:
                    raise failure
            finally:
                # As in Django, where these came first: the plain one behind them did not hide it.
                try:
                    await await_callbacks(self, self._callbacks, cancelled is not None)
                finally:
                    if cancelled is not None:
                        raise cancelled from sys.exception()
        finally:
            cancelled = failure = None  # their tracebacks hold this frame

    def _make_call(self, function: Callable[[], None], what: str) -> Call:
        # It is exported. None runs where the coroutine is being freed.
        loop = asyncio._get_running_loop() or self.loop  # noqa: SLF001
        bridge, name = DatabaseSyncToAsync(function), f"the {what} of {self}"
        call = bridge.make_call(name, mailbox_of(loop), copy_context(), function, self.alias)
        call.awaits = None
        return call

    # On the thread of its calls

    def _begin(self, call: Call) -> None:
        self._atomic.__enter__()
        self.lease = call.line
        self.lease.open(self)  # once it is decided, the end may come, and has its turn in it
        try:
            if self._decided.acquire(blocking=False) and not self.loop.is_closed():
                self._witness = attend(connections[self.alias])
            else:
                self.give_back(end=False)
        finally:
            if self._witness is None:  # it was given up, or that failed
                self.lease.close(self)
                self._atomic.__exit__(RuntimeError, None, None)

    def _end(self, exc_type: type[BaseException] | None) -> None:
        # Undone since its end came into line, it has nothing to commit.
        failure: BaseException | None = self.lost() if self.undone else self.overdue
        try:
            self.lease.close(self)
            if exc_type is None and failure is None and (failure := self._lost()) is None:
                prepare(self._callbacks, connections[self.alias])
            self._exit(exc_type or (type(failure) if failure is not None else None))
        finally:
            self.give_back(end=False)  # the worker is free before the caller goes on
        if failure is not None:
            raise failure

    def undo(self) -> None:
        """Roll it back, on its thread, if it has not ended."""
        self._exit(RuntimeError)

    def _left_open(self) -> list[Any]:
        """Return Django's blocks inside that functions have not left."""
        blocks = connections[self.alias].atomic_blocks
        return blocks[blocks.index(self._atomic) + 1 :] if self._atomic in blocks else []

    def _lost(self) -> TransactionAborted | None:
        # There is a witness, until undone.
        lost = self._witness.loss(connections[self.alias].needs_rollback)  # type: ignore[union-attr]
        if lost is None and not self._left_open():
            return None
        why, error = lost or ("a transaction.atomic() of a function in it was not left", None)
        what = f"{self} ended without an error, and nothing of it was saved: {why} [nothing-saved]"
        failure = TransactionAborted(what)
        failure.__cause__ = error
        return failure

    def _exit(self, exc_type: type[BaseException] | None) -> None:
        witness, self._witness = self._witness, None
        if witness is not None:
            try:
                for inner in reversed(self._left_open()):
                    inner.__exit__(exc_type, None, None)
                self._atomic.__exit__(exc_type, None, None)
            finally:
                witness.leave()


@overload
def atomic(using: Function) -> Function: ...
@overload
def atomic(
    using: str | None = None, savepoint: bool = True, durable: bool = False
) -> BlockManager: ...


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
        function: Any = using
        return atomic(None, savepoint, durable)(function)
    return BlockManager("atomic", functools.partial(AtomicBlock, using, savepoint, durable))
