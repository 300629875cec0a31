import asyncio
import os

from django.core.asgi import get_asgi_application

from ormbridge import BridgeMiddleware


class SlowClients:
    """End a response whose client has taken nothing for a while."""

    def __init__(self, application, seconds):
        self.application = application
        self.seconds = seconds

    async def __call__(self, scope, receive, send):
        async def send_in_time(message):
            async with asyncio.timeout(self.seconds):  # <--
                await send(message)

        await self.application(scope, receive, send_in_time)


os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

application = SlowClients(BridgeMiddleware(get_asgi_application()), seconds=30)
