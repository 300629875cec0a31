"""The lease of a live synchronous frame's thread: a guest there (step 2 of a call).

The first block or stream below a frame sends one work item to its thread, which serves the calls of
that block in the frame's place, until nothing keeps the lease. Meanwhile other calls wait where
asgiref has put them, and run in between unless a block of ``atomic()`` is open. Frames that are
entered in these calls nest on the stack, as they always do.

A frame that ends with a block or a stream open has it rolled back, or closed, on its thread, before
``async_to_sync`` returns.
"""

from __future__ import annotations

import time
from typing import Any

from asgiref.current_thread_executor import CurrentThreadExecutor

from ..core import process
from ..core.asgiref import child_of, frame_thread, has_ended, line_of, submit
from ..core.call import Call, hosts, name_of
from ..core.cleaning import refresh_own_thread
from ..core.errors import LeaseClosed
from .generators import owner_of
from .lease import Lease, LeaseRoute
from .turns import undo


class FrameRoute(LeaseRoute):
    """Where the calls of blocks and streams below one frame go."""

    name = "a synchronous frame"
    frame: Any  # never None

    def __init__(self, frame: CurrentThreadExecutor) -> None:
        self.frame, self.timed_out = frame, set()

    def place(self, call: Call) -> None:
        """Put *call* in line, or refuse it with :exc:`LeaseClosed`: the frame has ended."""
        frame, owner = self.frame, owner_of(call)
        with process.lock:  # code of several event loops may be below one frame
            lease = hosts.get(frame)
            if owner not in (None, lease):
                call.iteration.generator = None  # it is suspended above the frame, and stays there
            if isinstance(lease, FrameLease) and lease.put(call):
                return
            # First known, then in line: who comes behind it there is told of it.
            lease = hosts[frame] = FrameLease(self, frame)
            lease.put(call)
            if submit(frame, lease.host):
                return
            del hosts[frame]
        call.refuse(_too_late(call))

    def forget(self, lease: Any) -> None:
        """Let go of *lease*, which is over."""
        with process.lock:
            if hosts.get(self.frame) is lease:
                del hosts[self.frame]


class FrameLease(Lease):
    """A line of calls for the thread that waits in a synchronous frame."""

    _left = "its synchronous frame ended before it"

    def __init__(self, route: FrameRoute, frame: CurrentThreadExecutor) -> None:
        super().__init__(route, process.default_pool())
        self.thread, self._frame = frame_thread(frame), frame
        self._ready, self._items = line_of(frame)  # what waits for the thread

    def _rouse(self) -> bool:
        with self._ready:
            self.resting = False
            self._ready.notify()
        return False  # it may be in the middle of what it runs for others

    # On the frame's thread

    def host(self) -> None:
        """Serve the calls until nothing keeps the lease. What it raises is the frame's."""
        try:
            if self.claim():
                self._serve()
        except BaseException:  # Ctrl-C, which comes out of the frame
            self._end()
            undo(self.blocks, self._left)
            raise
        finally:
            self.context.forget(self)
        self.finish()

    def _run(self, call: Call) -> bool:
        call.awaits = None  # what runs there is never stopped
        return call.run(prepare=refresh_own_thread)

    def _rest(self) -> None:
        """Run what else waits for the thread, unless a block is open, until there is more to do."""
        while True:
            with self._ready:
                while self.resting and not (has_ended(self._frame) or self._has_neighbour()):
                    self._ready.wait(self._refuse_late())
                if not self.resting:
                    return
                item = self._items.popleft() if self._has_neighbour() else None
            if item is not None:
                item.run()
            else:  # the frame has ended
                self._end()
            del item

    def _has_neighbour(self) -> bool:
        return bool(self._items) and not self.blocks

    def _refuse_late(self) -> float | None:
        """Refuse what has waited for too long. Returns the seconds until the next one has."""
        # What asgiref sent to the frame has no timer: a call of the bridge has one.
        now, timeout = time.monotonic(), self.pool.settings.timeout
        asked = [vars(item).setdefault("asked", now) for item in self._items]
        for since in asked:
            if now < since + timeout:
                return float(since + timeout - now)
            item = self._items.popleft()
            if hasattr(item, "future") and item.future.set_running_or_notify_cancel():
                child = child_of(item.fn)
                name = name_of(child.func if child is not None else item.fn)
                item.future.set_exception(self.no_turn(name, since))
        return None

    def _end(self) -> None:
        for call in self._abandon():
            call.refuse(_too_late(call))


def _too_late(call: Call) -> LeaseClosed:
    is_stream = call.iteration is not None and call.iteration.close is not None
    remedy = "; iterate on it to its end there" if is_stream else ""
    what = f"{call} came too late: its synchronous frame has ended{remedy}"
    return LeaseClosed(f"{what} [frame-ended]")
