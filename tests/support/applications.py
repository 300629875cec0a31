"""Applications, and a middleware, that several tests serve."""

from channels.generic.websocket import AsyncWebsocketConsumer

from ormbridge import (
    BridgeMiddleware,
)
from tests.core.support import thread_name


class SyncOnly:
    """A middleware that is synchronous only, and so runs async views below async_to_sync."""

    async_capable = False

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        response["thread"] = thread_name()
        return response


def serve(answer):
    """Return an application whose sockets send back what ``answer(text)``, a coroutine, returns."""

    class Consumer(AsyncWebsocketConsumer):
        async def receive(self, text_data=None, bytes_data=None):
            await self.send(str(await answer(text_data)))

    return BridgeMiddleware(Consumer.as_asgi())
