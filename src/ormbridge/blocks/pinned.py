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
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TypeVar, cast

from ..asgi.context import LeaseContext
from ..asgi.ground import on_ground
from ..core import route as routes
from ..core.call import Call
from ..leases.frame_lease import FrameRoute
from ..leases.turns import Block, Owner

_P = ParamSpec("_P")
_R = TypeVar("_R")

# Who drives an async generator in the context of those that it serves, and to its end.
_DRIVERS = ("contextlib", "pytest_asyncio", "anyio")


class Entered:
    """One entering of a ``pinned()`` or ``atomic()``."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.loop = asyncio.get_running_loop()
        #: Whether the coroutine is being freed: then nothing can be waited for.
        self.is_freed = False
        #: The transaction, of ``atomic()``.
        self.work: object = None
        self._ground = on_ground(block)
        around = block.parent
        if (frame := routes.frame_inside(around, self.loop)) is not None:
            block.base = FrameRoute(frame)
        elif around is not None:
            block.base = around.for_block(block.name)
        else:
            block.base = LeaseContext(block.name, holds=True)
        block.is_alone = block.base.is_alone
        outside = around.base if isinstance(around, Block) else around
        self._has_own = isinstance(block.base, LeaseContext) and block.base is not outside

    async def step_in(self) -> None:
        """Have the calls that follow belong to the block."""
        await self._ground.__aenter__()

    async def step_out(self) -> None:
        """Have the calls that follow belong to what is around the block."""
        await self._ground.__aexit__()

    def put_later(self, call: Call) -> None:
        """Put *call*, the end, in line: a coroutine may be freed in the middle of anything."""
        put = cast(Owner, self.block.lease).put
        if self.block.frame is None:
            put(call)
            return
        with suppress(RuntimeError):  # the loop is closed, and so the frame has ended
            self.loop.call_soon_threadsafe(put, call)

    def give_back(self, end: bool = True) -> None:
        """Give the worker back, if it is the block's own. Any thread."""
        if self._has_own:
            cast(LeaseContext, self.block.base).release(end)


class BlockManager:
    """What ``pinned()`` and ``atomic()`` have in common: an asynchronous context manager."""

    _name: str
    _exclusive: bool

    def __init__(self) -> None:
        self._entered: list[Entered] = []

    async def __aenter__(self) -> None:
        place = _place_of(sys._getframe(1), self._name)  # noqa: SLF001 # the caller's
        self._entered.append(await self._enter(place))

    async def __aexit__(self, exc_type: type[BaseException] | None, *exc: object) -> None:
        block = routes.current_route.get()
        entered = next((each for each in self._entered if each.block is block), self._entered[-1])
        self._entered.remove(entered)
        # Only an async generator can wait when it is closed.
        flags = sys._getframe(1).f_code.co_flags  # noqa: SLF001 # the caller's
        entered.is_freed = exc_type is GeneratorExit and not flags & inspect.CO_ASYNC_GENERATOR
        await self._leave(entered, exc_type)

    async def _enter(self, name: str) -> Entered:
        parent = routes.current_route.get()
        if parent is not None:
            parent.check(name)
        entered = Entered(Block(name, parent, self._exclusive))
        await self._begin(entered)
        await entered.step_in()
        return entered

    async def _leave(self, entered: Entered, exc_type: type[BaseException] | None) -> None:
        moved = entered.block is not routes.current_route.get()
        await self._end(entered, RuntimeError if moved else exc_type)
        if moved:
            entered.block.undone = (
                "it was left in another context than it was entered in; close an async generator "
                "that is left early with contextlib.aclosing()"
            )
        if moved and not entered.is_freed:
            raise RuntimeError(
                f"{entered.block} was left in another context than it was entered in; a "
                "transaction was rolled back. Enter and leave it in one task; in an async "
                "generator, wrap it in contextlib.asynccontextmanager [other-context]"
            )

    async def _begin(self, entered: Entered) -> None:
        """Open the block."""

    async def _end(self, entered: Entered, exc_type: type[BaseException] | None) -> None:
        """Close the block, and leave it."""
        raise NotImplementedError

    def __call__(
        self, func: Callable[_P, Coroutine[Any, Any, _R]]
    ) -> Callable[_P, Coroutine[Any, Any, _R]]:
        """Run a coroutine function inside the block: the decorator form."""
        # Objects, such as those of sync_to_async(), may have a method that is one.
        method = getattr(type(func), "__call__", None)  # noqa: B004 # not whether it has one
        if not any(map(inspect.iscoroutinefunction, (func, method))):
            raise TypeError(
                f"@{self._name}() takes a coroutine function, and {func!r} is none; a synchronous "
                "function takes django.db.transaction.atomic, and an async generator none at all "
                "[coroutine-function]"
            )
        named = getattr(func, "__qualname__", type(func).__qualname__)
        name = f"{self._name}() around {func.__module__}.{named}"

        @functools.wraps(func)
        async def inside(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            entered = await self._enter(name)
            try:
                result = await func(*args, **kwargs)
            except BaseException as error:
                entered.is_freed = isinstance(error, GeneratorExit)
                await self._leave(entered, type(error))
                raise
            await self._leave(entered, None)
            return result

        return inside


class Pinned(BlockManager):
    """What :func:`pinned` returns."""

    _name = "pinned"
    _exclusive = False

    async def _end(self, entered: Entered, exc_type: type[BaseException] | None) -> None:
        block = entered.block
        block.close()
        if block.lease is not None:
            block.lease.unpin(block)
        await entered.step_out()
        entered.give_back()


def pinned() -> Pinned:
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
    return Pinned()


def _place_of(frame: FrameType, name: str) -> str:
    """Name the block that is opened in *frame*.

    :raises RuntimeError: in an async generator, whose consumer would be inside the block.
    """
    while frame.f_back is not None and _module_of(frame) == "contextlib":  # AsyncExitStack
        frame = frame.f_back
    code = frame.f_code
    place = f"{name}() at {Path(code.co_filename).name}:{frame.f_lineno} in {code.co_qualname}"
    driver = _module_of(frame.f_back) if frame.f_back is not None else "contextlib"
    if code.co_flags & inspect.CO_ASYNC_GENERATOR and driver not in _DRIVERS:
        raise RuntimeError(
            f"{place} is in an async generator. Code that iterates on it would be inside the "
            "block, and leaving the iteration early would leave it open. Put the block into a "
            "coroutine function that the generator awaits, or make the generator a context "
            "manager with contextlib.asynccontextmanager [in-generator]"
        )
    return place


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
