"""Hold a worker for a block of async code: ``pinned()``, and what ``atomic()`` shares with it.

A block (``turns.py``) is opened on the lease of the block around it, on the one that the request
holds, on a synchronous frame's thread, else on a lease of its own.

Guarantees:

* every call in the block runs on that thread: the bridge's, Django's ``a``-methods,
  ``sync_to_async``;
* a task that outlives the block is refused, not sent elsewhere.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, cast

from ..asgi.context import LeaseContext
from ..asgi.sync_to_async import on_route
from ..core import route as routes
from ..core.errors import logger
from ..leases.frame_lease import FrameRoute
from ..leases.turns import Block
from .witness import package_of

#: A coroutine function: a block around it keeps its type.
Function = TypeVar("Function", bound=Callable[..., Coroutine[Any, Any, Any]])

# Who drives an async generator in the context of those that it serves, and to its end.
_DRIVERS = ("contextlib", "pytest_asyncio", "anyio")


class OpenBlock(Block):
    """A block that code on an event loop enters: one of ``pinned()``, unless a subclass says more.

    The first call in it keeps its lease.
    """

    def __init__(self, name: str, alias: str | None = None) -> None:
        parent = routes.current_route.get()
        if parent is not None:
            parent.check(name)
        super().__init__(name, parent, alias)
        self.loop = asyncio.get_running_loop()
        #: Whether the coroutine is being freed: then nothing can be waited for.
        self.is_freed = False
        around: Any = parent.base if isinstance(parent, Block) else parent
        if (frame := routes.frame_inside(parent, self.loop)) is not None:
            around = FrameRoute(frame)
        base = self.base = around.for_block(name) if around else LeaseContext(name, holds=True)
        self.is_alone, self.frame = base.is_alone, base.frame
        self._own = None if base is around else base

    async def begin(self) -> None:
        """Open the block."""

    async def end(self, exc_type: type[BaseException] | None) -> None:
        """Close the block, which takes no more calls, and which the running code has left.

        :param exc_type: what it failed with.
        """
        if self.lease is not None:
            self.lease.close(self)
            self.lease.look()
        self.give_back()

    def give_back(self, end: bool = True) -> None:
        """Give the worker back, if it is the block's own. Any thread."""
        if self._own is not None:
            self._own.release(end)


class BlockManager:
    """What ``pinned()`` and ``atomic()`` return: an asynchronous context manager."""

    def __init__(self, name: str, make: Callable[[str], OpenBlock], place: str = "") -> None:
        """Make one that can be entered any number of times.

        :param name: that of the function, for error messages.
        :param make: makes the block, from its name.
        :param place: the block's name, if it is not to be that of the line where it is entered.
        """
        self._name, self._make, self._place = name, make, place
        self._entered: dict[OpenBlock, on_route] = {}

    async def __aenter__(self) -> None:
        block = self._make(self._place or _place_of(sys._getframe(1), self._name))  # noqa: SLF001 # the caller
        await block.begin()
        inside = self._entered[block] = on_route(block)
        inside.__enter__()

    async def __aexit__(self, exc_type: type[BaseException] | None, *exc: Any) -> None:
        route = routes.current_route.get()
        block = next((each for each in self._entered if each is route), [*self._entered][-1])
        moved = block is not route
        # Only an async generator can wait when it is closed.
        flags = sys._getframe(1).f_code.co_flags  # noqa: SLF001 # the caller's
        block.is_freed = exc_type is GeneratorExit and not flags & inspect.CO_ASYNC_GENERATOR
        block.close()
        self._entered.pop(block).__exit__()
        try:
            await block.end(RuntimeError if moved else exc_type)
        finally:
            if exc[1] is not None:  # asgiref has raised it again, on the thread, in a cycle
                BaseException.with_traceback(exc[0], exc[1])  # its class may refuse to set it
        if moved:
            block.undone = (
                "it was left in another context than it was entered in; close an async generator "
                "that is left early with contextlib.aclosing()"
            )
        if moved and not block.is_freed:
            raise RuntimeError(
                f"{block} was left in another context than it was entered in; a "
                "transaction was rolled back. Enter and leave it in one task; in an async "
                "generator, wrap it in contextlib.asynccontextmanager [other-context]"
            )

    def __del__(self) -> None:
        """Leave what was entered by hand, by code that ended without leaving it. Any thread."""
        for block in self._entered:
            if block.lease is not None and not block.lease.over:
                block.is_freed = True
                block.close()
                list(block.end(RuntimeError).__await__())  # it waits for nothing
                logger.warning("%s was not left: its worker is given back", str(block))

    def __call__(self, func: Function) -> Function:
        """Run a coroutine function inside the block: the decorator form."""
        # Objects, such as those of sync_to_async(), may have a method that is one.
        method = getattr(type(func), "__call__", None)  # noqa: B004 # not whether it has one
        if not any(map(inspect.iscoroutinefunction, (func, method))):
            raise TypeError(
                f"@{self._name}() takes a coroutine function, and {func!r} is none; a synchronous "
                "function takes django.db.transaction.atomic, or nothing in place of pinned(), and "
                "an async generator none at all [coroutine-function]"
            )
        named = getattr(func, "__qualname__", type(func).__qualname__)
        place = f"{self._name}() around {func.__module__}.{named}"

        @functools.wraps(func)
        async def inside(*args: Any, **kwargs: Any) -> Any:
            async with BlockManager(self._name, self._make, place):
                return await func(*args, **kwargs)

        return cast(Function, inside)


def pinned() -> BlockManager:
    """Have everything in the block on one worker, one connection for each database.

    ``async with pinned():`` or ``@pinned()``. What belongs to a session stays there: ``SET``,
    advisory locks, temporary tables, ``LISTEN``. The worker is taken by the first call and given
    back with the block. Calls of the bridge, Django's ``a``-methods and ``sync_to_async`` run there
    one at a time. Inside another block, or an HTTP request that holds its worker, it is the same
    worker, and calls beside the block may run there in between. Under a live synchronous frame it
    is that frame's thread.

    A task that was started in the block and outlives it gets :exc:`LeaseClosed`.

    :raises LeaseClosed: in such a task.
    :raises RuntimeError: in an async generator (those of ``contextlib.asynccontextmanager`` and
        fixtures of pytest plugins are fine).
    """
    return BlockManager("pinned", OpenBlock)


def _place_of(frame: FrameType, name: str) -> str:
    """Name the block that is opened in *frame*.

    :raises RuntimeError: in an async generator, whose consumer would be inside the block.
    """
    while frame.f_back is not None and package_of(frame) == "contextlib":  # AsyncExitStack
        frame = frame.f_back
    code = frame.f_code
    place = f"{name}() at {Path(code.co_filename).name}:{frame.f_lineno} in {code.co_qualname}"
    driver = package_of(frame.f_back) if frame.f_back is not None else "contextlib"
    if code.co_flags & inspect.CO_ASYNC_GENERATOR and driver not in _DRIVERS:
        raise RuntimeError(
            f"{place} is in an async generator. Code that iterates on it would be inside the "
            "block, and leaving the iteration early would leave it open. Put the block into a "
            "coroutine function that the generator awaits, or make the generator a context "
            "manager with contextlib.asynccontextmanager [in-generator]"
        )
    return place
