"""What the servers serve. ``SERVERS_BRIDGE=1`` adds the one line."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

from ormbridge import BridgeMiddleware

http = get_asgi_application()

from tests.servers.project.urls import websockets  # noqa: E402 - Django must be set up first

App = Callable[..., Awaitable[None]]


async def lifespan(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Say on standard output what the server tells about its life."""
    while True:
        event = (await receive())["type"]
        print(event, flush=True)  # noqa: T201 - the harness reads it
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


application: Any = ProtocolTypeRouter({"http": http, "websocket": websockets, "lifespan": lifespan})
if os.environ.get("SERVERS_BRIDGE") == "1":
    application = BridgeMiddleware(application)
