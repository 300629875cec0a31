"""Large results in bounded memory: ``stream()``.

The rows of a queryset come in chunks. Each chunk is a call on the lease's thread (step 2), where
the suspended generator with the cursor stays between two of them; the next chunk is fetched while
the caller works on this one.

Guarantees:

* at most two chunks of rows are alive: the one in hand and the one read ahead;
* every step of the cursor, its end included, runs on the thread that opened it;
* leaving the loop closes the cursor as soon as what runs on that thread is done;
* the body of a loop never waits for a second worker while its stream holds one: outside of any
  other context, calls of the bridge made there run on the worker of the stream.

It rests on CPython's habit of dropping a loop's iterator the moment that the loop is left.

**Cancellation.** A task that is cancelled while it waits for a chunk gives up that call as any
other, which on PostgreSQL cancels its statement, and the stream is closed. So does who leaves the
loop while a chunk is read ahead; but in a transaction, which that could abort, the chunk is not
stopped, and its rows are dropped.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from django.db.models.query import QuerySet, RawQuerySet

from ..core.connections import ThreadConnections
from ..core.errors import LeaseClosed
from ..leases.turns import Block
from .source import Chunk, Source

_Row = TypeVar("_Row")


def stream(
    queryset: QuerySet[Any, _Row] | RawQuerySet[_Row],  # type: ignore[type-var]
    chunk_size: int = 2000,
) -> Stream[_Row]:
    """Iterate over a large result in bounded memory, with the next rows fetched meanwhile.

    ``async for row in stream(queryset)``, or, to have the cursor closed when the block is left,
    ``async with stream(queryset) as rows`` and ``async for row in rows``. Rows are what the
    queryset gives: model instances, those of ``raw()``, or what ``values()`` and ``values_list()``
    give. ``prefetch_related()`` is done for each chunk.

    Rows are read from the database *chunk_size* at a time, on PostgreSQL from a server-side cursor,
    and at most two chunks are alive. While your code works on one, the next one is fetched on a
    worker, which the stream keeps until its last row was read or the loop is left: by ``break``, an
    exception or cancellation. The cursor is then closed there at once.

    In an HTTP request, an ``atomic()`` or a ``pinned()`` the worker is theirs, and the stream joins
    the transaction. One that was opened in such a block ends with it. Under a live synchronous
    frame (Django's ``TestCase``, a sync view) it is that frame's thread, and the stream ends with
    the frame. Elsewhere calls of the bridge made in the body run on the worker of the stream.

    **Cancellation.** A task that is cancelled while it waits for rows closes the stream; on
    PostgreSQL their statement is cancelled. What is only read ahead is cancelled as well when the
    loop is left, but not in a transaction.

    :param queryset: a ``QuerySet`` or a ``RawQuerySet``; its cache is neither used nor filled.
    :param chunk_size: rows to fetch at a time.
    :raises TypeError: if *queryset* is something else.
    :raises ValueError: if *chunk_size* is not an ``int`` of 1 or more.

    The iteration raises what the query raises, once, after the rows before it;
    :exc:`LeaseClosed` if the block, frame or request in which it was opened has ended;
    :exc:`PoolTimeout` if a fetch had to wait too long for a worker or its turn there; and
    ``RuntimeError`` if it is iterated on twice, or by two tasks at one time, or after it was
    closed.

    See `QuerySet.iterator()
    <https://docs.djangoproject.com/en/stable/ref/models/querysets/#iterator>`_.
    """
    return Stream(queryset, chunk_size)


class Stream(Generic[_Row]):
    """What :func:`stream` returns: to be iterated on once."""

    def __init__(self, queryset: Any, size: Any) -> None:
        if not isinstance(queryset, (QuerySet, RawQuerySet)):
            raise TypeError(
                f"stream() takes a QuerySet or a RawQuerySet, and {queryset!r} is none; a manager "
                "has one in .all() [stream-of]"
            )
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            what = f"chunk_size must be an int of 1 or more, and {size!r} is not [stream-of]"
            raise ValueError(what)
        self._source = Source(queryset, size)
        self._begun = False

    def __aiter__(self) -> Rows[_Row]:
        """Return the rows. Nothing is fetched before the first one is asked for.

        :raises RuntimeError: if they were asked for before.
        """
        begun, self._begun = self._begun, True
        if begun:
            raise RuntimeError(
                f"{self._source.name} can be iterated on once, by one task, and was before; call "
                "stream() again [stream-once]"
            )
        return Rows(self._source)

    async def __aenter__(self) -> Rows[_Row]:
        """Return the rows, which are closed as the block ends."""
        self._rows = self.__aiter__()
        return self._rows

    async def __aexit__(self, *exc: object) -> None:
        """Close the cursor, and wait until it is closed."""
        await self._rows.aclose()


class Rows(AsyncIterator[_Row]):
    """The iterator over the rows of one stream."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows: Iterator[_Row] = iter(())
        # The chunk that is being fetched.
        self._future: asyncio.Future[Chunk] | None = None
        self._waits = False
        # Makes what the next step raises, once there are no more rows.
        self._over: Callable[[], Exception] | None = None

    async def __anext__(self) -> _Row:
        """Return the next row. Waits only where the next chunk is not there yet."""
        while True:
            for row in self._rows:
                return row
            if self._over is not None:
                raise self._over()
            if self._source.is_of_another_loop():
                what = "was begun in another event loop; call stream() again [stream-once]"
                raise RuntimeError(f"{self._source.name} {what}")
            if self._waits:
                raise RuntimeError(
                    f"{self._source.name} is iterated on by two tasks at one time; give each a "
                    "stream of its own [stream-once]"
                )
            rows, is_last = await self._fetched()
            if self._over is None:  # still
                if is_last:
                    self._finish(StopAsyncIteration)
                else:
                    self._future = self._source.fetch(self)
                self._rows = iter(rows)

    async def aclose(self) -> None:
        """Close the cursor, and wait until it is closed. What runs on its thread ends first.

        It is waited for no longer than PostgreSQL takes to be given up, a few seconds: in a
        transaction a fetch that is slower than that goes on.
        """
        source = self._source
        self._finish(functools.partial(RuntimeError, f"{source.name} is closed"))
        # Without a thread there is no cursor, and a fetch that begins now finds that it is over.
        if source.thread is not None and not source.is_of_another_loop():
            with suppress(TimeoutError):
                await asyncio.wait_for(source.closed.wait(), ThreadConnections.BOUND + 1)

    async def _fetched(self) -> Chunk:
        """Wait for the chunk that is being fetched, and return it."""
        future, source = self._future, self._source
        # A fetch that waits for its turn until a frame or block ends that was entered since, and
        # waits for it here, goes there itself.
        if future is None or (not future.done() and source.moves()):
            future = self._future = source.fetch(self)
        self._waits = True
        try:
            return await future
        except asyncio.CancelledError:
            message = (
                f"{self._source.name} was closed when a task was cancelled that waited for its "
                "next rows; call stream() again"
            )
            self._finish(functools.partial(RuntimeError, message), stop=True)
            raise
        except BaseException:
            self._finish(StopAsyncIteration)
            raise
        finally:
            self._waits = False
            del future  # the traceback of its error holds this frame

    def end_with(self, block: Block) -> None:
        """Give no more rows, also to a task that waits for one: *block*, around it, has ended."""
        message = (
            f"{self._source.name} was opened in {block}, which has ended, and was closed with it; "
            "iterate on it inside the block [rows-ended]"
        )
        self._finish(functools.partial(LeaseClosed, message))

    def _finish(self, over: Callable[[], Exception], stop: bool = False) -> None:
        """Give no more rows, and have the cursor closed. The first call decides.

        :param stop: see :meth:`.Source.let_go`.
        """
        if self._over is None:
            self._over = over
            self._rows = iter(())
            self._source.let_go(stop)
            future, self._future = self._future, None
            if self._waits and future is not None and not future.done():
                with suppress(RuntimeError):  # its loop is closed
                    future.set_exception(over())
