"""Asynchronous functions given to ``transaction.on_commit()`` in an ``atomic()`` block.

Django calls what it was given, and drops what that returns. Here that is awaited: on the event
loop, after the commit, in order.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial, update_wrapper
from typing import Any

from asgiref.sync import async_to_sync

from ..core.errors import logger
from ..postgres.canceller import outlast

#: What such a function returned, and whether it is robust.
Callback = tuple[Awaitable[Any], bool]


def prepare(callbacks: list[Callback], connection: Any) -> None:
    """Have what was given to ``on_commit()`` added to *callbacks* as it is called.

    On the block's thread, before its end.
    """
    # Else what is around commits: a synchronous atomic(), or a block, which takes them over.
    is_outermost = len(connection.atomic_blocks) == 1
    take: Any = callbacks.append if is_outermost else async_to_sync(_await_here)
    connection.run_on_commit = [
        (savepoints, update_wrapper(partial(_call, take, given(func), robust), func), robust)
        for savepoints, func, robust in connection.run_on_commit
    ]


def given(func: Any) -> Any:
    """Return what was given to ``on_commit()``, where *func* may have been put in its place."""
    return func.args[1] if getattr(func, "func", None) is _call else func


async def await_callbacks(whose: object, callbacks: list[Callback], cancelled: bool) -> None:
    """Await *callbacks*. On the loop.

    :param whose: what the log says of one that fails, and is robust.
    :param cancelled: whether the task was cancelled before, and may be again at each await (anyio
        does that): what was committed is followed by its callbacks all the same.
    """
    running: Any = _await_each(whose, callbacks)
    if callbacks and cancelled:
        running = asyncio.ensure_future(running)
        await outlast(running)
    await running


async def _await_each(whose: object, callbacks: list[Callback]) -> None:
    try:
        while callbacks:
            callback, robust = callbacks.pop(0)
            try:
                await callback
            except Exception as error:
                if not robust:
                    raise
                logger.error("on_commit() of %s failed: %r", str(whose), error, exc_info=error)
    finally:  # one that fails ends the row, as in Django
        for callback, _ in callbacks:
            if inspect.iscoroutine(callback):
                callback.close()
        callbacks.clear()


def _call(take: Callable[[Callback], object], func: Callable[[], Any], robust: bool) -> None:
    """Call *func*, and hand what it returns to *take* if that is to be awaited."""
    if inspect.isawaitable(outcome := func()):
        take((outcome, robust))


async def _await_here(callback: Callback) -> None:
    await callback[0]
