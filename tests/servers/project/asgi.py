"""What the servers serve. ``SERVERS_BRIDGE=1`` adds the one line.

With ``SERVERS_TASKS=1`` the server waits for the tasks that views left behind, before it stops.
With ``SERVERS_CALLS=1`` a call is made as the application is loaded.
"""

import asyncio
import atexit
import os
from collections.abc import Awaitable, Callable
from typing import Any

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

from ormbridge import BridgeMiddleware, database_sync_to_async

http = get_asgi_application()

# Django must be set up first.
from tests.servers.project.queries import count  # noqa: E402
from tests.servers.project.urls import websockets  # noqa: E402
from tests.servers.project.views import tasks  # noqa: E402

atexit.register(print, "atexit", flush=True)

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
        if event == "lifespan.shutdown" and os.environ.get("SERVERS_TASKS") == "1":
            await asyncio.gather(*tasks)
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


application: Any = ProtocolTypeRouter({"http": http, "websocket": websockets, "lifespan": lifespan})
if os.environ.get("SERVERS_BRIDGE") == "1":
    application = BridgeMiddleware(application)
if os.environ.get("SERVERS_CALLS") == "1":
    asyncio.run(database_sync_to_async(count)())
