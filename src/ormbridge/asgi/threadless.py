"""Jobs that Django and Channels send to a thread although they need none (a part of step 2).

Workers clean their own connections, so a job that asks for nothing else is done where it is, on the
event loop's thread, which has no connections: Channels' ``aclose_old_connections`` before each
message, Django's handlers of ``request_started`` and ``request_finished``, middleware that only
takes notes, and what Django's own does with headers, cookies, and sessions and messages that it has
not to save. A request or message that does not use the database takes no worker.

Tools that trace calls wrap all of these, also from one call to the next. What counts is what they
say that they wrap (``__wrapped__``, as :func:`functools.wraps` and wrapt's proxies have it); what
is called is the wrapper.

It is asked inside a route only (``sync_to_async.py``).
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
from typing import Any

from asgiref.sync import AsyncToSync, SyncToAsync
from django.conf import settings
from django.core.cache import close_caches
from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.base import reset_urlconf
from django.core.handlers.exception import convert_exception_to_response
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connections, reset_queries
from django.http.response import HttpResponseBase

from ..core.call import name_of

# Middleware that only takes notes. Most tools do more in theirs: Elastic's and Scout's look at
# request.user, which may query; SqlCommenter's is about the connections of its thread.
_OPENTELEMETRY = "opentelemetry.instrumentation.django.middleware.otel_middleware"
_TAKES_NOTES = (_OPENTELEMETRY, "django_prometheus.middleware")
# The functions that Signal.asend() and asend_robust() send to a thread.
_SENDS = ("Signal.asend.<locals>.sync_send", "Signal.asend_robust.<locals>.sync_send")
# Django's middleware that saves something of the request: where, and the setting that says what.
_SAVES = {
    "django.contrib.sessions.middleware.SessionMiddleware": ("session", "SESSION_ENGINE"),
    "django.contrib.messages.middleware.MessageMiddleware": ("_messages", "MESSAGE_STORAGE"),
}
# That, where nothing is to be saved, and what only has to do with headers and cookies.
_QUIET = (
    *_SAVES,
    *("django.middleware.security.SecurityMiddleware", "django.middleware.csrf.CsrfViewMiddleware"),
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
)
# Wrappers around a function, at the most: a mock has no end of them.
_LAYERS = 50


def needs_thread(part: Any) -> bool:
    """Say whether *part*, a function, may block, use a database or close a file."""
    function, owner = _inside(part)
    return function not in _THREADLESS or hasattr(owner, "_files")


def answer(
    job: Any,
    child: functools.partial[Any],
    loop: asyncio.AbstractEventLoop,
    context: contextvars.Context,
) -> asyncio.Future[Any] | list[Any] | None:
    """Do *job*, which calls *child*, and return the outcome.

    :param context: that in which *job* does it.
    :returns: None if it needs a thread; a list of what *child* calls if it needs one and does
        nothing but send a signal of a request, or close a response.
    """
    function, owner = _inside(child.func)
    middleware = function if owner is None else owner
    future = loop.create_future()
    if not _takes_notes(type(middleware).__module__):
        parts = _parts_of(function, owner)
        if parts is None and not (function in _THREADLESS or _is_quiet(function, owner, child)):
            return None
        if any(map(needs_thread, parts or ())):
            return parts
        calls = [getattr(each, "__func__", each) for each in parts or [child.func]]
        bare = getattr(child.func, "__func__", child.func) is function and not child.keywords
        if bare and all(each in _CLEAN_UPS for each in calls):  # workers do it
            future.set_result(parts and [(each, None) for each in parts])
            return future
        # close_old_connections may be among them, and this thread is the event loop's.
        if any(each.connection for each in connections.all(initialized_only=True)):
            return parts
        if bare and (parts is None or all(each in _THREADLESS for each in calls)):
            job = child  # asgiref's way there, on which tools count, is long
    elif middleware is function:  # it takes synchronous requests only
        if not isinstance(middleware.get_response, AsyncToSync):
            return None  # and so does the next one
        handle: Any = convert_exception_to_response(functools.partial(_pass_through, middleware))
        return loop.create_task(handle(*child.args), context=context)
    try:
        future.set_result(job())
    except Exception as error:
        future.set_exception(error)
    # It says that the loop waits for this thread, which is its own.
    SyncToAsync.threadlocal.main_event_loop_pid = None
    return future


async def _pass_through(middleware: Any, request: Any) -> Any:
    middleware.process_request(request)
    return middleware.process_response(request, await middleware.get_response.awaitable(request))


def _parts_of(function: Any, owner: Any) -> list[Any] | None:
    """Return what *function* calls, if it sends a request's signal or closes a response."""
    if getattr(function, "__qualname__", None) in _SENDS:
        cells = (cell.cell_contents for cell in function.__closure__)
        variables = dict(zip(function.__code__.co_freevars, cells, strict=True))
        of_request = variables["self"] in (request_started, request_finished)
        return variables["sync_receivers"] if of_request else None
    if getattr(function, "__name__", None) != "close" or not isinstance(owner, HttpResponseBase):
        return None
    response: Any = owner  # more than the stubs know of
    # close() cannot call asynchronous receivers from the thread of an event loop.
    receivers, asynchronous = request_finished._live_receivers(response._handler_class)
    return [function, *response._resource_closers, *receivers, *asynchronous]


def _is_quiet(function: Any, owner: Any, child: functools.partial[Any]) -> bool:
    """Say whether *owner*, Django's middleware and no subclass, asks nobody in *child*."""
    cls, name = name_of(type(owner)), getattr(function, "__name__", None)
    if cls not in _QUIET or not child.args or name_of(function) != f"{cls}.{name}":
        return False
    # process_view() may read the body of other requests.
    reads = name == "process_view" and child.args[0].method not in ("GET", "HEAD")
    saves = cls in _SAVES and _may_save(child.args[0], *_SAVES[cls])
    return not (reads or saves or settings.CSRF_USE_SESSIONS)


def _may_save(request: Any, place: str, setting: str) -> bool:
    """Say whether what *request* has in *place* is to be saved, or anybody's but Django's."""
    kept = getattr(request, place, None)
    made_by = getattr(settings, setting) if kept is None else type(kept).__module__
    saves = settings.SESSION_SAVE_EVERY_REQUEST or not made_by.startswith("django.contrib.")
    return saves or any(getattr(kept, sign, False) for sign in ("modified", "used", "added_new"))


def _takes_notes(module: str) -> bool:
    """Say whether the middleware in *module* only takes notes, and has no hook of the user's."""
    if module not in _TAKES_NOTES:
        return False
    hooked = getattr(sys.modules[module], "_DjangoMiddleware", None)
    return not any(getattr(hooked, f"_otel_{each}_hook", None) for each in ("request", "response"))


def _inside(func: Any) -> tuple[Any, Any]:
    """Return the function that *func* wraps in the end, and whose method it is, or None."""
    owner = None
    try:
        for _ in range(_LAYERS):
            owner = getattr(func, "__self__", owner)
            name = "func" if type(func) is functools.partial else "__wrapped__"
            if (inner := getattr(func, name, None)) is None:
                break
            func = inner
    except Exception:  # an object with a __getattr__ of its own
        return func, None
    return getattr(func, "__func__", func), owner


# What Django connects to the two signals, and what closes a response and its request. A worker
# cleans its own connections; the rest belongs to the context, not to a thread.
_CLEAN_UPS = (close_old_connections, reset_queries)
_CLOSES = (HttpResponseBase.close, ASGIRequest.close)
_THREADLESS = [_inside(each)[0] for each in (*_CLEAN_UPS, close_caches, reset_urlconf, *_CLOSES)]
