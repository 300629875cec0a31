"""A function that a test can hold on its thread."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ormbridge.core.worker import current

GUARD = 60.0
"""Seconds after which a test that hangs gives up. No test depends on the figure."""
PROCESS_GUARD = 5 * GUARD
"""The same for a process that a test starts, which imports everything first."""


class Gate:
    """Called on a worker, it blocks there until ``open`` is set.

    ``calls`` counts the calls that came in; ``threads`` names where.
    """

    def __init__(self) -> None:
        self.open = threading.Event()
        self.threads: list[str] = []
        self._entered = threading.Semaphore(0)

    def __call__(self) -> str:
        self.threads.append(current().name)
        self._entered.release()
        if not apart(self.open.wait, GUARD):  # an event loop, whose thread it may be, goes on
            raise AssertionError(f"nobody opened the gate within {GUARD} s")
        return current().name

    async def entered(self, calls: int = 1) -> None:
        """Wait until *calls* more calls have come in."""
        for _ in range(calls):
            if not await asyncio.to_thread(self._entered.acquire, timeout=GUARD):
                raise AssertionError(f"nobody came to the gate within {GUARD} s")


def apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call *function*, which blocks: below a greenlet so that its event loop goes on."""
    green = sys.modules.get("ormbridge.green.worker")
    return function(*args) if green is None else green.apart(function, *args)


def block_until(condition: Callable[[], object]) -> None:
    """Block the calling thread until *condition* holds: what another thread does a moment later."""
    deadline = time.perf_counter() + GUARD
    while not condition():
        if time.perf_counter() > deadline:
            raise AssertionError(f"what was waited for did not happen within {GUARD} s")
        apart(threading.Event().wait, 0.001)
