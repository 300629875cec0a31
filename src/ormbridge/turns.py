"""The line of one thread: calls wait for their turn, blocks decide whose turn it is (step 2).

Guarantees:

* calls run one at a time, in the order in which they came;
* while a block is open, only calls of the innermost one run; the others wait until it has closed,
  at most ``TIMEOUT`` seconds;
* a block that waits to close is never refused. If blocks inside it are still open after ``TIMEOUT``
  seconds, all of them are rolled back.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from .blocks import Block, outwards
from .call import Call
from .errors import PoolTimeout
from .settings import Settings
from .stats import PoolStats


class Turns:
    """Calls in line for one thread."""

    over = False
    #: The thread that runs them; a lease has it from its first call on.
    thread: threading.Thread

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        # Re-entrant: freeing a generator may come in between.
        self._lock = threading.RLock()
        # Guarded by _lock.
        self._line: OrderedDict[Call, None] = OrderedDict()
        self._blocks: list[Block] = []  # the innermost is at the end
        self._running: Call | None = None

    def __str__(self) -> str:
        running = self._running
        return f"{self.name}, {'idle' if running is None else f'in {running}'}"

    def put(self, call: Call) -> bool:
        """Put *call* in line. Returns False, and does nothing, if the line takes no more calls."""
        raise NotImplementedError

    def _append(self, call: Call) -> None:
        # The lock is held.
        call.asked = time.monotonic()
        call.line = self
        self._line[call] = None

    def _take(self) -> Call | None:
        """Return the first call in line whose turn it is. The lock is held."""
        for call in self._line:
            if not self._blocks or self._is_turn_of(call):
                del self._line[call]
                return call
        return None

    def _is_turn_of(self, call: Call) -> bool:
        if not self._blocks or (call.closes is not None and call.closes.overdue is not None):
            return True
        own = (each for each in outwards(call.block) if each.exclusive and each.line is self)
        return next(own, None) is self._blocks[-1]

    def open(self, block: Block) -> None:
        """Make *block* the innermost one. Runs on the line's thread."""
        with self._lock:
            block.line = self
            self._blocks.append(block)

    def close(self, block: Block) -> None:
        """Take *block* out, and all blocks inside it, which are undone. On the line's thread."""
        with self._lock:
            outlived = self.inside(block)
            self._blocks = [each for each in self._blocks if each not in (block, *outlived)]
            stragglers = [call for call in self._line if call.block in outlived]
            for call in stragglers:
                del self._line[call]
        for call in stragglers:
            call.refuse(cast(Block, call.block).lost())

    def undo(self, blocks: list[Block], why: str) -> None:
        """Roll *blocks*, the outermost first, back. Runs on the line's thread."""
        for block in reversed(blocks):
            block.undone, block.closing = why, True
            with suppress(Exception):  # then it is rolled back with its connection
                cast(Callable[[], object], block.undo)()

    def inside(self, block: Block) -> list[Block]:
        """Return the open blocks inside *block*, the outermost first."""
        with self._lock:
            if block not in self._blocks:  # all were dismissed: the interpreter exits
                return []
            return self._blocks[self._blocks.index(block) + 1 :]

    def forget(self, call: Call) -> None:
        """Take *call*, which gave up, out of the line."""
        with self._lock:
            self._line.pop(call, None)

    def time_out(self, call: Call, seen: dict[object, PoolStats]) -> PoolTimeout:
        """Return the error of *call*, which has waited for its turn for too long."""
        with self._lock:
            within = f", inside {self._blocks[-1]}" if self._blocks else ""
        return PoolTimeout(
            f"{call} waited {time.monotonic() - call.asked:.1f} s for its turn on "
            f"{self.thread.name}, which has {self}{within}. Calls of one lease run one at a time, "
            "and those of an open block go first: shorten them, do not wait in a block for what "
            "runs outside it, or raise settings.ORMBRIDGE['TIMEOUT']"
        )

    def hurry(self, call: Call) -> None:
        """Have *call*, which closes a block and has waited too long, roll back what it waits for.

        Runs on its loop's thread.
        """
        block = cast(Block, call.closes)
        with self._lock:
            innermost = self._blocks[-1] if self._blocks else None
            if call not in self._line or block.overdue is not None:
                return
            if innermost in (None, block):  # a block may still open inside it
                call.watch(self.settings)
                return
            block.overdue = PoolTimeout(
                f"{block} waited {time.monotonic() - call.asked:.1f} s for {innermost} to end "
                "inside it; both were rolled back. Await what you start in a block"
            )
        self.look()

    def look(self) -> None:
        """Have the thread look whether it is the turn of a call in line."""
        raise NotImplementedError
