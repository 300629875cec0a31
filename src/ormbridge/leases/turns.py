"""Whose turn it is: calls in line for one thread, and the blocks that are open there (step 2).

A block is what ``atomic()`` or ``pinned()`` opens. A call belongs to the block that its context
inherited, whatever task makes it: ``gather``, ``shield``, ``wait_for`` and fixtures change the task
and keep the context. From the moment that a block begins to close, calls that still belong to it
are refused.

Guarantees:

* calls run one at a time, in the order in which they came;
* while a block is open, only calls of the innermost one run; the others wait until it has closed;
* a block that waits to close is never refused. If blocks inside it are still open after ``TIMEOUT``
  seconds, all of them are rolled back.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ..core.call import Call
from ..core.errors import LeaseClosed, PoolTimeout
from ..core.route import Route
from ..core.worker import Leaseholder


class Block(Route):
    """One ``async with atomic()`` or ``async with pinned()``, entered."""

    def __init__(self, name: str, parent: Route | None, alias: str | None) -> None:
        """Make a block that is not open yet.

        :param name: what it is and where it was opened, for error messages.
        :param parent: the route of the code around it.
        :param alias: of the database that it has a transaction of: then nothing else runs on its
            thread while it is the innermost one. None for ``pinned()``.
        """
        self.name, self.parent, self.alias = name, parent, alias
        #: Where its calls go.
        self.base: Route
        #: The lease where they wait for their turn, from the first one on.
        self.lease: Any = None
        #: Whether it takes no more calls.
        self.closing = False
        #: Set where it closes although blocks inside it are still open: it waited for too long.
        self.overdue: PoolTimeout | None = None
        #: The rows of streams that were opened in it, which end with it.
        self.streams: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Why it was rolled back while it was open.
        self.undone = ""
        #: Those of its calls that wait on its line, in the order in which they came.
        self.waiting: OrderedDict[Call, None] = OrderedDict()

    def __str__(self) -> str:
        return self.name

    def undo(self) -> None:
        """Roll it back, on its thread, if it has not ended."""

    def place(self, call: Call) -> None:
        """Find a thread for *call*, in the block."""
        self.base.place(call)

    def release(self) -> None:
        """Give back what is held between calls around the block."""
        self.base.release()

    def lost(self) -> LeaseClosed:
        """Return the error of a block whose end comes too late."""
        why = self.undone or "the interpreter exits"
        return LeaseClosed(f"{self} was rolled back: {why} [block-ended]")

    def close(self) -> None:
        """Take no more calls, and end the streams that were opened in the block."""
        self.closing = True
        for rows in list(self.streams):
            rows.end_with(self)

    def check(self, call: object) -> None:
        """See that *call*, which belongs to the block, may still run.

        :raises LeaseClosed: if the block, or one around it, closes or has closed.
        """
        for block in outwards(self):
            if block.undone:
                raise block.lost()
            if block.closing:
                raise LeaseClosed(
                    f"{call} was called in {block}, which has ended: the calling task outlived the "
                    "block. Await the task inside the block, or start it after the block; one that "
                    "has to outlive it takes asyncio.create_task(…, context=contextvars.Context()) "
                    "[block-ended]"
                )


def outwards(route: object) -> Iterator[Block]:
    """Yield *route*, if it is a block, and the blocks around it, the innermost first."""
    while isinstance(route, Block):
        yield route
        route = route.parent


class Line(Leaseholder):
    """Calls in line for one thread, and the blocks that are open there: what a lease is to them."""

    #: The thread that runs them, from the first one on; a worker, but below a frame.
    thread: threading.Thread | None = None

    def __init__(self) -> None:
        super().__init__()
        #: Guards the rest. Re-entrant: freeing a generator may come in between.
        self.lock = threading.RLock()
        #: Those that wait outside of the blocks of ``atomic()``, in the order in which they came.
        self.waiting: OrderedDict[Call, None] = OrderedDict()
        #: Those that close such a block, and have waited for too long. They go first.
        self.hurried: OrderedDict[Call, None] = OrderedDict()
        #: Open blocks of ``atomic()``; the innermost is at the end.
        self.blocks: list[Block] = []
        #: Open blocks of ``pinned()`` that had a call here.
        self.pins: set[Block] = set()
        #: Whether it takes no more calls.
        self.over = False

    def append(self, call: Call) -> bool:
        """Let *call* wait for its turn. Returns whether it is that. The lock is held."""
        # With its first call, a pinned() block keeps the lease.
        for block in outwards(None if call.stays_out else call.route):
            if block.lease is None and not block.closing:  # that of atomic() has one
                block.lease = self
                self.pins.add(block)
        inside = next((each for each in outwards(call.route) if each in self.blocks), self)
        inside.waiting[call] = None
        return inside is self.innermost()

    def innermost(self) -> Block | Line:
        """Return that whose turn it is. Of many that wait, no other is looked at. Any thread."""
        return self.blocks[-1] if self.blocks else self

    def _close_line(self) -> list[Call]:
        """Take no more calls. Returns all that wait, which do so no longer."""
        with self.lock:
            self.over = True
            for block in self.pins if self.thread is None else ():
                block.lease = None  # it gets another one with its next call
            calls: list[Call] = []
            for line in self.lines():
                calls += line
                line.clear()
            return calls

    def lines(self) -> list[OrderedDict[Call, None]]:
        """Return all that wait. The lock is held."""
        return [self.hurried, self.waiting, *(block.waiting for block in self.blocks)]

    def open_blocks(self) -> list[Block]:
        """Return all of them. Any thread."""
        with self.lock:
            return [*self.blocks, *self.pins]

    def no_turn(self, call: object, asked: float) -> PoolTimeout:
        """Return the error of *call*, which waits for its turn since *asked*.

        Any thread, and without the lock: who asks may have that of a frame, which is taken inside
        this one elsewhere.
        """
        # The list only grows: without those that have ended it is a new one.
        within = f", inside {blocks[-1]}" if (blocks := self.blocks) else ""
        return PoolTimeout(
            f"{call} waited {time.monotonic() - asked:.1f} s for its turn on "
            f"{self.thread.name}, which has {self}{within}. "  # type: ignore[union-attr] # it waits
            "Calls of one lease run one at a time, and those of an open block go first: shorten "
            "them, do not wait in a block for what runs outside it, or raise "
            "settings.ORMBRIDGE['TIMEOUT'] [no-turn]"
        )

    def take(self) -> Call | None:
        """Return the first call whose turn it is. The lock is held."""
        line = self.hurried or self.innermost().waiting
        return line.popitem(last=False)[0] if line else None

    def open(self, block: Block) -> None:
        """Make *block* the innermost one."""
        with self.lock:
            self.blocks.append(block)

    def close(self, block: Block) -> None:
        """Take *block* out, and all blocks inside it, which are undone: then on their thread."""
        with self.lock:
            self.pins.discard(block)
            at = self.blocks.index(block) if block in self.blocks else len(self.blocks)
            self.blocks, inside = self.blocks[:at], self.blocks[at + 1 :]
            self.innermost().waiting.update(block.waiting)  # they are told, in their turn
        undo(inside, f"{block} could not wait any longer for it")
        for each in inside:
            for call in each.waiting:
                call.refuse(each.lost())


def hurry(calls: list[Call]) -> None:
    """Have *calls*, which close blocks, roll back what they wait for too long. Their loop."""
    for call in calls:
        lease: Any = call.line
        block = next(outwards(call.route))
        with lease.lock:
            innermost = lease.innermost()
            if call in block.waiting and innermost is block:  # one may still open inside it
                lease.watch(call)
            elif call in block.waiting:
                block.overdue = PoolTimeout(
                    f"{block} waited {time.monotonic() - call.asked:.1f} s for {innermost} to end "
                    "inside it; both were rolled back. Await what you start in a block [no-turn]"
                )
                lease.hurried[call] = block.waiting.pop(call)
                lease.look()


def undo(blocks: list[Block], why: str) -> None:
    """Roll *blocks*, the outermost first, back. Runs on the thread of their calls."""
    for block in reversed(blocks):
        block.undone, block.closing = why, True
        with suppress(Exception):  # then it is rolled back with its connection
            block.undo()
