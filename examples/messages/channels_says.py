import asyncio

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import InMemoryChannelLayer, get_channel_layer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.urls import path

settings.configure()


async def socket_without_a_route():
    await ProtocolTypeRouter({})({"type": "websocket", "path": "/chat"}, None, None)


async def address_without_a_route():
    await URLRouter([])({"type": "websocket", "path": "/chat"}, None, None)


class ChatConsumer(AsyncWebsocketConsumer):
    pass


async def consumer_without_as_asgi():
    router = URLRouter([path("chat", ChatConsumer)])
    await router({"type": "websocket", "path": "/chat"}, None, None)


async def channel_layer_without_settings():
    await get_channel_layer().group_send("chat", {"type": "chat.message"})


async def consumer_that_reads_too_slowly():
    layer = InMemoryChannelLayer(capacity=1)
    for _ in range(2):
        await layer.send("chat", {"type": "chat.message"})


MISTAKES = [
    socket_without_a_route,
    address_without_a_route,
    consumer_without_as_asgi,
    channel_layer_without_settings,
    consumer_that_reads_too_slowly,
]


async def main():
    for make in MISTAKES:
        try:
            await make()
        except Exception as error:
            print(f"{make.__name__}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    asyncio.run(main())
