"""The lease of a live synchronous frame's thread, from the first block opened there (step 2).

A frame runs what is handed to it, from its own coroutine and from tasks of dead frames below it.
Once a block has been opened there, a :class:`FrameLease` stands in front of all that: calls of the
bridge, Django's ``a``-methods and neighbours that know nothing of the block pass it, and take turns
as on a worker.

A frame that ends with a block open rolls it back, on its thread, before ``async_to_sync`` returns.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections import OrderedDict
from typing import Any, cast

from asgiref.current_thread_executor import CurrentThreadExecutor

from .call import Call
from .errors import LeaseClosed
from .frames import FrameItems, frame_thread, items_of, pass_on
from .mailbox import mailbox_of
from .settings import Settings
from .threadless import child_of
from .turns import Turns

#: Those that may still be waited for as the interpreter exits: Ctrl-C ends a frame, not its tasks.
frame_leases: weakref.WeakSet[FrameLease] = weakref.WeakSet()


class FrameLease(Turns):
    """A line of calls for the thread that waits in a synchronous frame."""

    def __init__(self, frame: CurrentThreadExecutor, items: FrameItems, settings: Settings) -> None:
        """Put a line in front of *items*, those of *frame*."""
        super().__init__("a synchronous frame", settings)
        self.thread = frame_thread(frame)
        self._items = items
        items.front = self
        items.last.append(self._end)
        frame_leases.add(self)

    def takes(self, item: Any) -> bool:
        """Put *item*, which asgiref hands to the frame, in line; False if it may run as it is.

        asgiref's lock is held.

        :raises LeaseClosed: if it belongs to a block that has ended.
        """
        call = _call_of(item)
        if call.block is not None:
            call.block.check(call)
        with self._lock:
            if self.over or not (self._running or self._line or self._blocks):
                return False
            self._append(call)
        self._items.push(self._run)
        return True

    def put(self, call: Call) -> bool:
        """Put *call* in line. Returns False, and does nothing, if the frame has ended."""
        with self._items.lock:
            if self.over or not self._items.push(self._run):
                return False
            with self._lock:
                self._append(call)
        return True

    def _append(self, call: Call) -> None:
        super()._append(call)
        call.watch(self.settings)

    def look(self) -> None:
        """Have the frame's thread run the calls whose turn it is."""
        with self._items.lock:
            self._items.push(self._run)

    # On the frame's thread

    def _run(self) -> None:
        while True:
            self._items.do_first()
            if (call := self._next()) is None:
                return
            call.run_on_frame()

    def _next(self) -> Call | None:
        with self._lock:
            self._running = call = self._take()
            return call

    def _end(self) -> None:
        self._items.front = None
        self.undo(list(self._blocks), "its synchronous frame ended before it")
        self.dismiss()

    def dismiss(self) -> None:
        """Take no more calls, and refuse those in line. Any thread."""
        with self._lock:
            self.over = True
            self._blocks.clear()
            line, self._line = self._line, OrderedDict()
        for call in line:
            call.refuse(LeaseClosed(f"{call} came too late: its synchronous frame has ended"))


def _call_of(item: Any) -> Call:
    """Return the call of the bridge that *item* runs, or make it one."""
    call = getattr(item.fn, "__self__", None)
    if not isinstance(call, Call):
        child = child_of(item.fn)
        name = child.func if child is not None else item.fn
        call = Call(item.run, name, mailbox_of(asyncio.get_running_loop()))
        future = cast("asyncio.Future[Any]", call.future)
        future.add_done_callback(functools.partial(pass_on, item.future))
    return call


def lease_of(frame: CurrentThreadExecutor, settings: Settings) -> FrameLease:
    """Return the lease of *frame*; it is made by the first block there.

    :raises RuntimeError: if the frame has ended.
    """
    items = items_of(frame)
    lease = items.front
    return lease if isinstance(lease, FrameLease) else FrameLease(frame, items, settings)
