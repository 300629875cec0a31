"""One line for the whole app: ``BridgeMiddleware`` (where step 1 begins for unmodified code).

Django's ``a``-methods, sync views, ``channels.db`` and synchronous consumers all go where asgiref
sends them. The middleware gives each HTTP request and each WebSocket connection a context whose
calls asgiref sends to the pool.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..core import route as routes
from ..core.asgiref import live_frame
from ..core.bridge import aclose_old_connections
from ..core.errors import PoolTimeout, logger
from ..core.process import default_pool
from ..leases.turns import outwards
from .context import LeaseContext
from .sync_to_async import on_route

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


class BridgeMiddleware:
    """Run all database calls of an ASGI application on the pool.

    Wrap the application in ``asgi.py``: ``application = BridgeMiddleware(application)``. Django's
    ``a``-methods, sync views and middleware, ``channels.db`` and synchronous consumers then run in
    parallel, on at most ``MAX_THREADS`` workers, whose connections persist.

    An HTTP request has one worker from its first call that may leave something behind to its end,
    and its calls run there one at a time. A body whose length is known, and that calls nothing, is
    sent without one. In a WebSocket connection each call takes a worker, and keeps it while it
    leaves a transaction or a suspended generator open. ``HTTP_LEASE`` and ``WEBSOCKET_LEASE``
    change that. A task that outlives its request or connection goes on, on the pool.

    Where no worker becomes free within ``TIMEOUT`` seconds, the call raises :exc:`PoolTimeout`. If
    that ends an HTTP request before its response has started, the answer is a 503.

    Passed through untouched: ``lifespan``, other unknown scopes, and what runs below a live
    synchronous frame or inside another ``BridgeMiddleware``.

    :param application: an ASGI application.
    :raises TypeError: if *application* is not callable.
    """

    def __init__(self, application: Application) -> None:
        if not callable(application):
            raise TypeError(
                f"BridgeMiddleware takes an ASGI application, and {application!r} is not callable"
            )
        self.application = application
        # What Channels calls before each message. A context would answer its own without a thread,
        # but to make the call through asgiref alone costs as much as the rest of a message.
        consumer: Any = sys.modules.get("channels.consumer")
        if consumer is not None:
            consumer.aclose_old_connections = aclose_old_connections

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Run the application. Calls of the request or connection run on workers."""
        held = _held(scope["type"])
        route = outer = routes.current_route.get()
        for block in outwards(route):
            outer = block.parent
        over = isinstance(outer, LeaseContext) and (outer.ended or outer.answered)
        if held is None or (route and not over) or live_frame(asyncio.get_running_loop()):
            await self.application(scope, receive, send)
            return
        # In the same coroutine: each socket that is open has one.
        name = " ".join(str(scope[key]) for key in ("method", "path") if key in scope)
        context = LeaseContext(name or scope["type"], held, is_request=scope["type"] == "http")

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                # They may be an iterator, which the server is to find as it was.
                message = {**message, "headers": [*message.get("headers", ())]}
                context.ready = b"content-length" in (key.lower() for key, _ in message["headers"])
                # Django has made an error page of the PoolTimeout.
                if message["status"] == 500 and True in context.timed_out:
                    message["status"] = 503
            elif message["type"] == "http.response.body":
                # Who slowly reads what is there already, a page or a file, holds nothing. And the
                # client's next request, which servers start from here, finds the worker free.
                context.answered = not message.get("more_body")
                if context.answered or context.ready:
                    context.release()
            await send(message)

        try:
            # Servers may start a request from within the one before, and so from a block of it.
            with on_route(context):
                await self.application(scope, receive, watched_send)
        except PoolTimeout as error:
            if context.ready is not None or scope["type"] != "http":
                raise
            logger.error("%s: %s", context.name, error)
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": b"Service Unavailable"})
        finally:
            context.release(end=True)


def _held(kind: str) -> bool | None:
    """Say whether what is of *kind* holds its worker; None if its calls are left alone."""
    settings = default_pool().settings
    held = settings.websocket_lease == "connection"
    return {"http": settings.http_lease != "call", "websocket": held, "channel": held}.get(kind)


async def release() -> None:
    """Give back the worker that this request or connection holds, before a long stream or wait.

    It goes back as soon as nothing of the request runs on it; an open transaction or a suspended
    generator keeps it until these end. The next call takes a worker again, and holds it to the end
    or to the next ``release()``. State of the session (``SET``, temporary tables) stays behind.

    Without a worker held there is nothing to do.
    """
    if (route := routes.current_route.get()) is not None:
        route.release()
