"""Blocks: what ``atomic()`` and ``pinned()`` open, and who is inside (a part of step 2 of a call).

A call belongs to the block that its context inherited, whatever task makes it: ``gather``,
``shield``, ``wait_for`` and fixtures change the task and keep the context. From the moment that a
block begins to close, calls that still belong to it are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from .errors import LeaseClosed, PoolTimeout

if TYPE_CHECKING:
    from .context import LeaseContext
    from .turns import Turns

#: The innermost block around the running code.
current_block: ContextVar[Block | None] = ContextVar("ormbridge.current_block", default=None)


class Block:
    """One ``async with atomic()`` or ``async with pinned()``, entered."""

    def __init__(self, name: str, parent: Block | None, exclusive: bool) -> None:
        """Make a block that is not open yet.

        :param name: what it is and where it was opened, for error messages.
        :param exclusive: whether nothing else runs on its thread while it is the innermost one.
        """
        self.name = name
        self.parent = parent
        self.exclusive = exclusive
        #: Where its calls go, unless a synchronous frame is further in.
        self.context: LeaseContext | None = None
        #: Where its calls wait for their turn, from the first one on.
        self.line: Turns | None = None
        #: Whether it takes no more calls.
        self.closing = False
        #: Set where it closes although blocks inside it are still open: it waited for too long.
        self.overdue: PoolTimeout | None = None
        #: Rolls it back, on its thread.
        self.undo: Callable[[], object] | None = None
        #: What ends the streams that were opened in it. Used on the loop's thread only.
        self.streams: set[Callable[[], object]] = set()
        #: Why it was rolled back while it was open.
        self.undone = ""

    def __str__(self) -> str:
        return self.name

    def lost(self) -> LeaseClosed:
        """Return the error of a block whose end comes too late."""
        return LeaseClosed(f"{self} was rolled back: {self.undone or 'the interpreter exits'}")

    def close(self) -> None:
        """Take no more calls, and end the streams that were opened in the block."""
        self.closing = True
        for end in list(self.streams):
            end()

    def check(self, call: Any) -> None:
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
                    "has to outlive it takes asyncio.create_task(…, context=contextvars.Context())"
                )


def outwards(block: Block | None) -> Iterator[Block]:
    """Yield *block* and those around it, the innermost first."""
    while block is not None:
        yield block
        block = block.parent
