"""Jobs that Django and Channels send to a thread although they need none (a part of step 2).

Workers clean their own connections, so a job that asks for nothing else is done before it starts:
Channels' ``aclose_old_connections`` before each message, Django's handlers of ``request_started``
and ``request_finished``. A request or message that does not use the database takes no worker.

What asgiref submits is a ``partial`` of ``thread_handler`` whose last argument is a ``partial`` of
the user's function. That is not documented; where it changes, these jobs run on a worker like any
other.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable
from typing import Any

from django.core.cache import close_caches
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import reset_urlconf
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connections, reset_queries
from django.db.models.query import BaseIterable
from django.dispatch import Signal
from django.http.response import HttpResponseBase

# What Django connects to the two signals. A worker does the first two for itself; the others
# belong to the context, not to a thread.
_CLEAN_UPS = (close_old_connections, reset_queries)
_THREADLESS = (*_CLEAN_UPS, close_caches, reset_urlconf)

# The function that Signal.asend() sends to a thread.
_SEND = f"{Signal.asend.__qualname__}.<locals>.sync_send"
#: The function that sends the chunks of aiterator() to a thread.
CHUNKS = f"{BaseIterable.__qualname__}._async_generator.<locals>.next_slice"


def child_of(job: object) -> functools.partial[Any] | None:
    """Return the ``partial`` of the user's function in what asgiref submits, or None."""
    job = getattr(getattr(job, "__self__", None), "fn", job)  # of the work item of a dead frame
    child = job.args[-1] if isinstance(job, functools.partial) and job.args else None
    return child if isinstance(child, functools.partial) else None


def ends_or_starts_request(child: functools.partial[Any]) -> bool:
    """Say whether *child* sends ``request_started`` or ``request_finished``."""
    return _request_signal(child.func) is not None or _response_closed_by(child.func) is not None


def answer(
    child: functools.partial[Any], loop: asyncio.AbstractEventLoop
) -> asyncio.Future[Any] | None:
    """Do what *child* does, and return the outcome; None if it needs a thread."""
    if child.func is close_old_connections and not (child.args or child.keywords):
        outcome: Any = None
    elif (sending := _request_signal(child.func)) is not None:
        if not _need_no_thread(sending["sync_receivers"]):
            return None
        named = {"signal": sending["self"], "sender": sending["sender"]}
        outcome = [
            (receiver, None if receiver in _CLEAN_UPS else receiver(**named))
            for receiver in sending["sync_receivers"]
        ]
    elif _closes_response(child.func):
        outcome = child()
    else:
        return None
    future = loop.create_future()
    future.set_result(outcome)
    return future


def _request_signal(func: Any) -> dict[str, Any] | None:
    """Return the variables of Signal.asend(), if it is what sends *func* to a thread."""
    if getattr(func, "__qualname__", None) != _SEND:
        return None
    cells = (cell.cell_contents for cell in func.__closure__)
    variables = dict(zip(func.__code__.co_freevars, cells, strict=True))
    return variables if variables["self"] in (request_started, request_finished) else None


def _response_closed_by(func: Callable[..., Any]) -> Any:
    response = getattr(func, "__self__", None)
    closes = isinstance(response, HttpResponseBase) and func.__name__ == "close"
    return response if closes else None


def _closes_response(func: Any) -> bool:
    """Say whether *func* closes a response and does nothing that may block or use a database."""
    response = _response_closed_by(func)
    if response is None or func.__func__ is not HttpResponseBase.close:
        return False
    receivers, _ = request_finished._live_receivers(response._handler_class)
    requests = [getattr(closer, "__self__", None) for closer in response._resource_closers]
    return (
        _need_no_thread(receivers)
        and all(type(request) is ASGIRequest for request in requests)
        and not any(hasattr(request, "_files") for request in requests)
        # close_old_connections is among the receivers, and this thread is the event loop's.
        and not any(each.connection for each in connections.all(initialized_only=True))
    )


def _need_no_thread(receivers: Iterable[Callable[..., Any]]) -> bool:
    return all(receiver in _THREADLESS for receiver in receivers)
