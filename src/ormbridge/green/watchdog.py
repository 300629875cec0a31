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
from functools import partial
from types import CodeType
from typing import Any

from ..core import call
from ..core.errors import logger
from ..core.process import after_fork
from .loops import running

# Looks in each GREEN_SLOW seconds, and those without a greenlet at work after which it sleeps.
_LOOKS, _IDLE = 4, 40
# Frames of a stack that are shown, at the most; the function's are above those of the bridge.
_FRAMES, _CALL = 8, call.__file__


class Watchdog:
    """Looks at the greenlets that are at work."""

    def __init__(self) -> None:
        self.slow = 0.1
        #: Whether somebody has to wake it.
        self.sleeps = True
        self._told: set[CodeType] = set()

    def wake(self) -> None:
        """Look again."""
        self.sleeps = False
        thread = threading.Thread(target=self._look, name="ormbridge-watchdog", daemon=True)
        try:
            Context().run(thread.start)  # in none: tools would have it in the request that asks
        except Exception:  # no thread is left, and nobody is named
            self.sleeps = True

    def _look(self) -> None:
        idle = 0
        while idle < _IDLE:
            time.sleep(self.slow / _LOOKS)
            now = time.monotonic()
            at_work = [(each, each.lease, since) for each in list(running) if (since := each.since)]
            idle = 0 if at_work else idle + 1
            for runner, lease, since in at_work:
                if now - since >= self.slow:
                    self._tell(runner, lease, now - since)
        self.sleeps = True

    def _tell(self, runner: Any, lease: Any, seconds: float) -> None:
        frame = sys._current_frames().get(runner.thread)  # noqa: SLF001 # it is documented
        if frame is None or frame.f_code in self._told:
            return
        self._told.add(frame.f_code)
        frames = traceback.extract_stack(frame)
        begin = max((at for at, each in enumerate(frames) if each.filename == _CALL), default=-1)
        stack = "".join(traceback.format_list(frames[begin + 1 :][-_FRAMES:]))
        message = "%s holds up the event loop: it has not returned to it for %.1f s, here:\n%s"
        # Before its first call, and between two, it is the lease. Who keeps records keeps neither.
        logger.warning(message, str(runner.worker.connections.running or lease), seconds, stack)


watchdog = Watchdog()
after_fork(partial(setattr, watchdog, "sleeps", True))  # its thread is the parent's
