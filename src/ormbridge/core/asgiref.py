"""All that is private to asgiref: frames, and what stands in for one (step 2 of a call).

A synchronous frame is a thread that waits inside ``async_to_sync``: a sync view, Django's
``TestCase``, a ``SyncConsumer`` handler, a management command. It runs calls from below one at a
time, on its own thread and so on its own connections. It is live until its coroutine has finished;
a task that outlives it inherits a dead frame, which is skipped. :func:`live_frame` finds the
innermost one above a coroutine.

What runs there gets in line by :func:`submit`. For the wings: a lease of a frame's thread finds its
neighbours in :func:`line_of`; :func:`child_of` finds the user's function in what asgiref submits.

asgiref has no public way to ask, so this module alone reads ``AsyncToSync.executors``,
``loop_thread_executors`` and the fields of ``CurrentThreadExecutor`` and
``ThreadSensitiveContext``; its tests run on every supported asgiref.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar
from types import SimpleNamespace
from typing import Any, TypeVar

from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.local import _Storage
from asgiref.sync import AsyncToSync, SyncToAsync, _restore_context

_R = TypeVar("_R")

# The context variable behind AsyncToSync.executors. A plain get() of it is twenty times cheaper
# than the failing getattr() that most calls would pay, and enough to see that there is no frame.
# None where asgiref keeps it elsewhere.
_variable = getattr(getattr(AsyncToSync.executors, "_storage", None), "_data", None)

#: asgiref's own way to call a function on a thread, below what tools that trace put around it.
own_handler = inspect.unwrap(SyncToAsync.thread_handler)


def live_frame(loop: asyncio.AbstractEventLoop) -> CurrentThreadExecutor | None:
    """Return the executor of the innermost live frame above the caller on *loop*, or None."""
    executor: CurrentThreadExecutor | None = None
    if not isinstance(_variable, ContextVar) or _variable.get(None) is not None:
        executor = _innermost_live(getattr(AsyncToSync.executors, "current", None))
        if executor is None:
            # ThreadSensitiveContext(executor=…) hides the frame around it. If a worker waits there,
            # to wait for a second one could deadlock.
            hiding = SyncToAsync.thread_sensitive_context.get(None)
            executor = _innermost_live(getattr(hiding, "_old_executor", None))
    if executor is None and AsyncToSync.loop_thread_executors:
        # A task that lost its context still runs on a loop that async_to_sync started.
        executor = _innermost_live(AsyncToSync.loop_thread_executors.get(loop))
    return executor


def frame_thread(executor: CurrentThreadExecutor) -> threading.Thread:
    """Return the thread that waits in the frame of *executor*."""
    return executor._work_thread


def submit(frame: CurrentThreadExecutor, run: Callable[[], object]) -> bool:
    """Have the thread of *frame*, of that one alone, call *run*. Returns False if it has ended."""
    with frame._work_ready:
        if frame._broken:
            return False
        # What asgiref asks of a work item. What this raises comes out of the frame: Ctrl-C.
        frame._work_items.append(SimpleNamespace(run=run))  # type: ignore[arg-type]
        frame._work_ready.notify()
    return True


def line_of(frame: CurrentThreadExecutor) -> tuple[threading.Condition, deque[Any]]:
    """Return the work items that wait for the thread of *frame*, after what guards them."""
    return frame._work_ready, frame._work_items


def has_ended(frame: CurrentThreadExecutor) -> bool:
    """Say whether the coroutine of *frame* has finished, so that it takes no more work items."""
    return frame._broken


def is_inside(frame: CurrentThreadExecutor, other: CurrentThreadExecutor | None) -> bool:
    """Say whether *frame* is neither *other*, live or not, nor around it.

    One that the running code is below was then entered inside *other*.
    """
    while other is not None and other is not frame:
        other = other._old_executor
    return other is None


def _innermost_live(executor: CurrentThreadExecutor | None) -> CurrentThreadExecutor | None:
    # The caller's own thread runs this loop, so it can't be waiting to run anything else.
    own = threading.current_thread()
    while executor is not None and (executor._broken or executor._work_thread is own):
        executor = executor._old_executor
    return executor


def has_own_executor() -> bool:
    """Say whether the running code is in a ``ThreadSensitiveContext(executor=…)``."""
    return getattr(SyncToAsync.thread_sensitive_context.get(None), "_executor", None) is not None


def child_of(job: object) -> functools.partial[Any] | None:
    """Return the ``partial`` of the user's function in what asgiref submits, or None."""
    child = job.args[-1] if isinstance(job, functools.partial) and job.args else None
    return child if isinstance(child, functools.partial) else None


def take_over(variables: Context, before: Context, loop: object = None) -> None:
    """Take over, in the running code, what *variables*, a copy of its context, was changed to.

    And no more: another task may have the same context, and be in a block by now.

    :param before: what they were.
    :param loop: what it runs on. Elsewhere it is a coroutine that is freed, in anybody's context.
    """
    if asyncio._get_running_loop() is loop:
        # Not by what the values say of being equal.
        changed = {key: new for key, new in variables.items() if before.get(key, key) is not new}
        _restore_context(changed)  # type: ignore[arg-type] # all that it needs of a context


def has_locals(variables: Context) -> bool:
    """Say whether asgiref's Locals are in *variables*."""
    return _Storage in map(type, variables.values())


def move_locals(variables: Context, child: Callable[[], _R]) -> _R:
    """Run *child* on the thread with asgiref's Locals, which are in *variables*."""
    _restore_context(variables)
    return child()
