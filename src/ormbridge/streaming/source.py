"""Where the rows of a stream come from: its cursor, and the thread where that stays (step 2).

The cursor lives in a suspended generator, which the lease has in its care (``generators.py``), also
that of a synchronous frame. It is closed on its own thread: when it has ended, when nobody needs
the rows any more, or when the block, request or frame around it ends.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from ..asgi.context import LeaseContext
from ..core import hooks
from ..core import route as routes
from ..core.asgiref import frame_thread, live_frame
from ..core.bridge import DatabaseSyncToAsync
from ..core.call import Call
from ..core.errors import LeaseClosed
from ..core.mailbox import mailbox_of
from ..core.process import default_pool
from ..core.worker import current
from ..leases.frame_lease import FrameRoute
from ..leases.generators import Iteration, current_task, later
from ..leases.turns import outwards
from .chunks import read_chunks

#: Its rows, and whether it is the last.
Chunk = tuple[list[Any], bool]


class StreamContext(LeaseContext):
    """The context of a stream that was opened outside of any other, and of streams in its body."""

    takes_all = False  # the bridge's calls
    _is_of_all_tasks = True  # whichever has the block, the body of the stream may wait for it

    def __init__(self, name: str) -> None:
        super().__init__(name, holds=False)
        #: For which it goes on.
        self.streams: set[Source] = set()

    def place(self, call: Call, hold: bool = True) -> None:
        """Find a worker for *call*; after the last stream, as if there was none."""
        if self.ended and not self.takes_all:
            call.place(default_pool())
        else:
            super().place(call, hold)

    def leave(self, source: Source) -> None:
        """Go on without *source*, one of :attr:`streams`; end after the last."""
        self.streams.discard(source)
        if not self.streams:
            self.release(end=True)


class Source(Iteration):
    """The cursor of one stream.

    It must not know the rows' iterator, which would then never be dropped.
    """

    def __init__(self, queryset: Any, chunk_size: int) -> None:
        self.name = f"stream of {queryset.model._meta.label}"
        self._alias: str = queryset.db
        self._chunks = read_chunks(queryset, chunk_size)
        #: The thread of the cursor, from the first chunk on.
        self.thread: threading.Thread | None = None
        #: Set once the cursor is closed.
        self.closed = asyncio.Event()
        # From when the first chunk is asked for.
        self._route: routes.Route | None = None
        # Below what the last fetch was asked for: the frame, and the block.
        self._place: object = None
        #: The last fetch, until nobody needs the rows any more.
        self.call: Call | None = None

    # On the loop's thread

    def fetch(self, rows: Any) -> asyncio.Future[Chunk]:
        """Have the next chunk fetched.

        :param rows: when this is collected, nobody needs them any more.
        :returns: the future of the call, which has the error if there is no thread to be had.
        """
        mailbox = mailbox_of(asyncio.get_running_loop())
        self.task, self.generator = current_task(), self._chunks
        call = _bridge.make_call(self.name, mailbox, copy_context(), self.next_chunk, self._alias)
        self.call, call.iteration = call, self
        future: Any = call.future
        future.add_done_callback(heed)
        try:
            self._send(call, self._route or self._open(mailbox.loop, rows))
        except Exception as error:  # its turn is after the rows in hand
            future.set_exception(error)
        return future  # type: ignore[no-any-return]

    def _open(self, loop: asyncio.AbstractEventLoop, rows: Any) -> routes.Route:
        """Find out to what the stream belongs: the blocks around it end its *rows*."""
        super().__init__(loop, self._chunks, rows)
        route = routes.current_route.get()
        for block in outwards(route):
            block.streams.add(rows)
        if (frame := routes.frame_inside(route, loop)) is not None:
            route = FrameRoute(frame)
        elif route is None or (isinstance(route, LeaseContext) and route.ended):
            around, route = route, StreamContext(self.name)
            route.takes_all = around is not None and around.takes_all
            routes.current_route.set(route)
        if isinstance(route, StreamContext):
            route.streams.add(self)
        self._route = route
        return route

    def _send(self, call: Call, own: routes.Route) -> None:
        """Send *call* to the thread of the cursor, or to the frame that was entered there since."""
        route = call.route = routes.current_route.get()
        if route is not None:
            route.check(call)
        frame = live_frame(call.mailbox.loop)
        self._place = frame, route
        if frame is not None and frame_thread(frame) is self.thread:
            routes.place(call)
        else:
            own.place(call)

    def is_of_another_loop(self) -> bool:
        """Say whether it was begun in another event loop, where its chunks arrive."""
        return self._route is not None and self.loop is not asyncio.get_running_loop()

    def moves(self) -> bool:
        """Give up the last fetch if the running code is below another frame or block than then.

        Returns False if it is not, or that has started.
        """
        here = live_frame(asyncio.get_running_loop()), routes.current_route.get()
        return self._place != here and self.call is not None and self.call.cancel()

    def let_go(self, stop: bool = False) -> None:
        """Close the cursor on its thread. Any thread, in the middle of nothing.

        :param stop: whether a fetch that runs is stopped in a transaction, too, which that aborts.
        """
        call, self.call = self.call, None
        if call is None:  # there is nothing, or it was let go of
            return
        if not call.cancel() and (stop or not getattr(call.line, "transaction", True)):
            hooks.stop(call)
        if isinstance(self._route, StreamContext):
            self._route.leave(self)
        super().let_go()

    # On the thread of the cursor

    def next_chunk(self) -> Chunk:
        """Return the next chunk.

        :raises LeaseClosed: if the cursor was closed before.
        """
        thread = current()
        if self.thread not in (None, thread):
            raise LeaseClosed(self._lost())
        self.thread = thread
        if self.unused:
            self.close()
        try:
            return next(self._chunks), False
        except StopIteration as end:
            if end.value is None:
                raise LeaseClosed(self._lost()) from None
            return end.value, True
        finally:
            if not self._chunks.gi_suspended:  # type: ignore[attr-defined] # not in typeshed yet
                later(self.loop, self.closed.set)

    def close(self) -> None:
        """Close the cursor."""
        with suppress(Exception):  # the connection broke
            self._chunks.close()
        later(self.loop, self.closed.set)

    def _lost(self) -> str:
        return (
            f"{self.name} is closed: the request, connection or synchronous frame in which it was "
            "opened has ended; iterate on it to its end there [rows-ended]"
        )


_bridge = DatabaseSyncToAsync(Source.next_chunk)


def heed(future: asyncio.Future[Any]) -> None:
    """Drop an error that nobody comes for, as rows are: asyncio would log it."""
    if not future.cancelled():
        future.exception()
