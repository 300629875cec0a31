import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django_application = get_asgi_application()  # loads the apps: before what imports models

from channels.auth import AuthMiddlewareStack
from channels.generic.websocket import JsonWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.contrib.auth.models import User
from django.urls import path

from ormbridge import BridgeMiddleware  # <--


class UsersConsumer(JsonWebsocketConsumer):
    def receive_json(self, content):
        self.send_json({"users": User.objects.count()})


application = ProtocolTypeRouter(
    {
        "http": django_application,
        "websocket": AuthMiddlewareStack(
            URLRouter([path("ws/users/", UsersConsumer.as_asgi())]),
        ),
    }
)
application = BridgeMiddleware(application)  # <--
