"""Say which function holds up the event loop: one that blocks in a greenlet stops all of the loop.

A thread looks at what runs, some times in each ``GREEN_SLOW`` seconds. What runs tells it nothing
more than that it runs, so that a call pays nothing. It sleeps while nothing does.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from contextvars import Context
from types import CodeType
from typing import Any

from ..core.errors import logger
from .runner import green

# Looks in each GREEN_SLOW seconds, and those without a greenlet at work after which it sleeps.
_LOOKS, _IDLE = 4, 40
# Frames of a stack that are shown, at the most.
_FRAMES = 8


class Watchdog:
    """Looks at the threads of event loops that run greenlets."""

    def __init__(self) -> None:
        self.slow = 0.1
        #: Whether somebody has to wake it.
        self.sleeps = True
        # By the number of the thread, what it has of ``green``.
        self._threads: dict[int, Any] = {}
        self._told: set[CodeType] = set()

    def wake(self) -> None:
        """Look, at the calling thread as well."""
        self._threads[threading.get_ident()] = vars(green)
        self.sleeps = False
        thread = threading.Thread(target=self._look, name="ormbridge-watchdog", daemon=True)
        Context().run(thread.start)  # in none: tools would have it in the request that asks first

    def _look(self) -> None:
        seen: dict[int, tuple[Any, float]] = {}  # the turn that runs, and since when
        idle = 0
        while idle < _IDLE:
            time.sleep(self.slow / _LOOKS)
            now = time.monotonic()
            idle += 1
            for thread, own in list(self._threads.items()):
                runner = own.get("runner")
                turn = runner and (runner, runner.turns)
                idle = 0 if runner else idle
                if turn != seen.get(thread, (None, now))[0]:
                    seen[thread] = turn, now
                elif runner and now - seen[thread][1] >= self.slow:
                    self._tell(thread, runner.worker.connections.running, now - seen[thread][1])
        self.sleeps = True

    def _tell(self, thread: int, what: object, seconds: float) -> None:
        frame = sys._current_frames().get(thread)  # noqa: SLF001 # it is documented
        if frame is None or frame.f_code in self._told:
            return
        self._told.add(frame.f_code)
        stack = "".join(traceback.format_stack(frame)[-_FRAMES:])
        message = "%s holds up the event loop: it has not returned to it for %.1f s, here:\n%s"
        logger.warning(message, what, seconds, stack)


watchdog = Watchdog()
