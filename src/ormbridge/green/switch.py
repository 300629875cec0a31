"""Switch it on: what runs green, and what of Django and asgiref behaves so there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import Context
from functools import partial, update_wrapper
from typing import Any

from asgiref.sync import AsyncToSync, SyncToAsync
from django.db import connections
from django.db.models import FileField, Model

from ..asgi.context import LeaseContext
from ..core import hooks
from ..core.asgiref import own_handler
from ..core.call import Call
from ..core.pool import Pool
from ..core.settings import Settings
from ..leases.lease import Lease
from ..postgres.canceller import may_be_stopped, on_postgresql
from . import psycopg as psycopg
from .loops import may_begin, rescue
from .runner import begin, green
from .watchdog import watchdog
from .worker import GreenLease, GreenWorker, apart

_await_on_thread, _store = AsyncToSync.__call__, FileField.attr_class.save
# The databases that are PostgreSQL.
_ours = frozenset[str]()


def switch(settings: Settings) -> None:
    """Switch it on or off, as *settings* say, for calls that are made from now on."""
    global _ours
    watchdog.slow = settings.green_slow
    _ours = frozenset(on_postgresql())
    hooks.green = True if settings.green == "all" else None
    hooks.mark = _mark if settings.green else None
    LeaseContext.lease_type = GreenLease if settings.green else Lease  # type: ignore[assignment]


def _mark(call: Call, said: Any, error: Any, variables: Context, child: Any) -> None:
    """Have *call* run on its loop's thread if that may be.

    :param said: see :meth:`.DatabaseSyncToAsync.make_call`.
    :param error: the exception that is being handled, or None.
    """
    loop = call.mailbox.loop
    if watchdog.sleeps:
        watchdog.wake()
    said = said in _ours if isinstance(said, str) else said
    if may_begin(loop) and (_is_green(call.name, child) if said is None else said):
        call.loop, call.function = loop, partial(_run, call.function, error, variables, child)


def _run(job: Any, error: Any, variables: Context, child: Callable[[], Any]) -> Any:
    """Do *job*, which is asgiref's way to run *child*. In a greenlet, that alone will do.

    :param error: see :func:`_mark`.
    """
    if green.runner is None:
        return job()
    if error is None:
        return variables.run(child)
    try:
        raise error
    except BaseException:  # the function is to know of it
        return variables.run(child)


def _is_green(func: Any, child: Any) -> bool:
    """Say whether *func*, called by *child*, is Django's behind an ``a``-method, on PostgreSQL."""
    called, owner = [getattr(func, "__func__", func)], getattr(func, "__self__", None)
    if "create" in getattr(func, "__name__", ""):  # it saves, and save() may be anybody's
        called.append(getattr(getattr(owner, "model", None), "save", Model.save))
    if not (may_be_stopped(func) and all(f.__module__.startswith("django.") for f in called)):
        return False
    if len(_ours) == len(connections.settings):
        return True
    alias = getattr(owner, "db", None)
    if isinstance(owner, Model):
        # The second is documented.
        alias = getattr(child, "keywords", {}).get("using") or owner._state.db  # noqa: SLF001
    return alias in _ours


def _deliver(call: Any) -> bool:
    """Hand over the outcome of *call*, if the greenlet is on the thread of its loop."""
    return getattr(green.runner, "loop", None) is call.mailbox.loop and call.deliver() is None


def _async_to_sync(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Do what a function of ``async_to_sync`` does; in a greenlet, on the worker's thread."""
    runner, run = green.runner, partial(_await_on_thread, self, *args, **kwargs)
    if runner is None:
        return run()
    awaits = getattr(runner.worker.connections.running, "awaits", None)
    runner.awaits = True
    try:
        # It tells asgiref which loop waits for that thread, and where to put what it awaits.
        return apart(own_handler, SyncToAsync, runner.loop, sys.exc_info(), awaits, run)
    finally:
        runner.awaits = False


Pool.worker_type = GreenWorker
hooks.begin, hooks.deliver, hooks.rescue = begin, _deliver, rescue
AsyncToSync.__call__ = _async_to_sync  # type: ignore[method-assign]
# Where a file goes may be far away.
FileField.attr_class.save = update_wrapper(lambda *a, **k: apart(partial(_store, *a, **k)), _store)  # type: ignore[method-assign]
