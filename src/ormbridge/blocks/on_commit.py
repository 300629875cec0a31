"""Asynchronous functions given to ``transaction.on_commit()`` in an ``atomic()`` block.

Django calls what it was given, and drops what that returns. Here that is awaited: on the event
loop, after the commit, in order.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import async_to_sync

from ..core.errors import logger
from ..leases.turns import Block, outwards
from ..postgres.bounds import outlast

# What such a function returned, and whether it is robust.
_Callback = tuple[Awaitable[Any], bool]


class Callbacks:
    """Those of one block."""

    def __init__(self, block: Block) -> None:
        self._block = block
        self._callbacks: list[_Callback] = []

    def prepare(self, connection: Any) -> None:
        """Have what was given to ``on_commit()`` awaited. On the block's thread, before its end."""
        # Django calls what was given to on_commit(), and drops what that returns.
        around = self._block.parent
        if len(connection.atomic_blocks) == 1:
            take: Callable[[_Callback], object] = self._callbacks.append
        elif self._block.frame and not any(each.exclusive for each in outwards(around)):
            take = _await_here  # a synchronous atomic() around this one will commit
        else:
            return
        connection.run_on_commit = [
            (savepoints, _handing(take, func, robust), robust)
            for savepoints, func, robust in connection.run_on_commit
        ]

    async def run(self, cancelled: bool) -> None:
        """Await what asynchronous functions given to ``on_commit()`` have to do. On the loop.

        :param cancelled: whether the task was cancelled before, and may be again at each await
            (anyio does that): what was committed is followed by its callbacks all the same.
        """
        if self._callbacks and cancelled:
            running = asyncio.ensure_future(self._run())
            await outlast(running)
            running.result()
        elif self._callbacks:
            await self._run()

    async def _run(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        try:
            while callbacks:
                callback, robust = callbacks.pop(0)
                try:
                    await callback
                except Exception as error:
                    if not robust:
                        raise
                    logger.error("on_commit() of %s failed: %r", self._block, error, exc_info=error)
        finally:  # one that fails ends the row, as in Django
            for callback, _ in callbacks:
                if inspect.iscoroutine(callback):
                    callback.close()


def _handing(
    take: Callable[[_Callback], object], func: Callable[[], Any], robust: bool
) -> Callable[[], None]:
    """Return *func*, with what it returns handed to *take* if that is to be awaited."""

    @functools.wraps(func)
    def call() -> None:
        if inspect.isawaitable(outcome := func()):
            take((outcome, robust))

    return call


def _await_here(callback: _Callback) -> None:
    async_to_sync(_wait_for)(callback[0])


async def _wait_for(outcome: Awaitable[Any]) -> None:
    await outcome
