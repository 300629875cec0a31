"""Collect, and run, what a test gives to ``transaction.on_commit()``."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from django.db import DEFAULT_DB_ALIAS, connections

from ..core.bridge import database_sync_to_async
from ..core.errors import logger


@asynccontextmanager
async def capture_on_commit_callbacks(
    using: str = DEFAULT_DB_ALIAS, execute: bool = False
) -> AsyncGenerator[list[Callable[[], Any]], None]:
    """Collect the functions given to ``transaction.on_commit()`` in the block.

    What Django's ``TestCase.captureOnCommitCallbacks`` is for synchronous tests. Also for async
    tests of ``TestCase``.

    **Cancellation.** A block that is left with an error runs nothing.

    :param execute: run them as the block ends, those that they register too: functions on the
        worker, coroutine functions on the event loop.
    """
    callbacks: list[Callable[[], Any]] = []

    @database_sync_to_async
    def registered() -> list[Any]:
        return list(connections[using].run_on_commit)

    seen = len(await registered())
    yield callbacks
    while new := (await registered())[seen:]:
        seen += len(new)
        for _, callback, robust in new:
            callbacks.append(callback)
            if execute:
                await _run_callback(callback, robust)


async def _run_callback(callback: Callable[[], Any], robust: bool) -> None:
    try:
        # Not the callback itself: a coroutine function would be refused.
        outcome = await database_sync_to_async(lambda: callback())()
        if inspect.isawaitable(outcome):
            await outcome
    except Exception:
        if not robust:
            raise
        logger.exception("on_commit() callback %r failed", callback)
