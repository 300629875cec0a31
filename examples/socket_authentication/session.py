import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django_application = get_asgi_application()

from channels.auth import AuthMiddlewareStack
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.contrib.auth.models import User
from django.urls import path

from ormbridge import BridgeMiddleware


class ChatConsumer(AsyncWebsocketConsumer):
    async def connect(self):
        if self.scope["user"].is_anonymous:  # <--
            await self.close()
            return
        await self.accept()
        await self.send(f"Hello, {self.scope['user'].username}")

    async def receive(self, text_data):
        there = User.objects.filter(pk=self.scope["user"].pk, is_active=True)
        if user := await there.afirst():  # not locked out meanwhile, nor deleted  # <--
            await self.send(f"{user.username}: {text_data}")
        else:
            await self.close(code=4403)


sockets = URLRouter([path("ws/chat/", ChatConsumer.as_asgi())])
application = ProtocolTypeRouter(
    {
        "http": django_application,
        "websocket": AllowedHostsOriginValidator(AuthMiddlewareStack(sockets)),
    }
)
application = BridgeMiddleware(application)
