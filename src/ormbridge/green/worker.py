"""A worker whose lease may run elsewhere than on its thread, and its connections (step 4).

The thread does then what may block. See :mod:`.runner`.
"""

from __future__ import annotations

import weakref
from asyncio import _get_running_loop
from collections.abc import Callable
from functools import partial
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ..core.connections import ThreadConnections, here
from ..core.settings import Reset
from ..core.worker import Worker
from .runner import apart


class GreenConnections(ThreadConnections):
    """The connections of a worker, on whichever thread its lease runs."""

    def adopt_thread(self) -> None:
        """Do nothing: :class:`Wrappers` finds them."""

    def lease_ends(self, reset: Reset | None, failed: bool) -> None:
        """Leave every connection as the next lease may have it, or close it."""
        # Without a thread nothing was connected, and RESET does not wait.
        waits = reset is not None and here.worker.ident is not None
        (apart if waits else _call)(super().lease_ends, reset, failed)

    def catch_up(self) -> None:
        """Wait for who still cancels a statement, or breaks a connection, of a call that ended."""
        if self.finishing.acquire(False):
            self.finishing.release()
        else:
            apart(super().catch_up)

    def _close(self, own: weakref.ref[BaseDatabaseWrapper]) -> None:
        apart(super()._close, own)

    def discard(self, connection: BaseDatabaseWrapper, reason: str) -> None:
        """Roll *connection* back, close it and forget it, and log the *reason*."""
        apart(super().discard, connection, reason)


class GreenWorker(Worker):
    """A worker that does errands for its lease, where that runs elsewhere."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connections = GreenConnections()
        #: What is to be done. Set before the thread is woken for it.
        self.errand: Callable[[], object] | None = None

    def _is_woken(self, seconds: float) -> bool:
        while super()._is_woken(seconds):
            errand, self.errand = self.errand, None
            if errand is None:
                return True
            errand()
            del errand
        return False


class Wrappers:
    """Where Django keeps its wrappers by alias: a worker's go with it, wherever its lease runs.

    Elsewhere, and for code on an event loop, it is asgiref's Local, as ever.
    """

    def __init__(self, local: Any) -> None:
        vars(self)["_local"] = local

    def __getattr__(self, alias: str) -> Any:
        own = _wrappers()
        if own is None:
            return getattr(self._local, alias)
        try:
            return own[alias]
        except KeyError:
            raise AttributeError(alias) from None

    def __setattr__(self, alias: str, wrapper: Any) -> None:
        own = _wrappers()
        if own is None:
            setattr(self._local, alias, wrapper)
        else:
            own[alias] = wrapper
            # It is used on whichever thread acts for the worker.
            wrapper.validate_thread_sharing = _call
            wrapper.connect = partial(_connect, weakref.ref(wrapper))

    def __delattr__(self, alias: str) -> None:
        own = _wrappers()
        if own is None:
            delattr(self._local, alias)
        else:
            own.pop(alias, None)


def _wrappers() -> dict[str, Any] | None:
    worker = here.worker
    elsewhere = worker is None or _get_running_loop() is not None
    return None if elsewhere else worker.connections.wrappers


def _call(function: Callable[..., Any] = bool, *args: Any) -> Any:
    return function(*args)


def _connect(own: weakref.ref[BaseDatabaseWrapper]) -> None:
    if (wrapper := own()) is not None:
        apart(type(wrapper).connect, wrapper)


_handler: Any = connections
_handler._connections = Wrappers(_handler._connections)  # noqa: SLF001 # there is no other way
