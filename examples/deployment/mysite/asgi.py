"""The application that the servers load."""

import os

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django_application = get_asgi_application()

from django.urls import path

from ormbridge import BridgeMiddleware

from .consumers import RoomConsumer

sockets = URLRouter([path("ws/<slug:room>/", RoomConsumer.as_asgi())])
application = BridgeMiddleware(
    ProtocolTypeRouter({"http": django_application, "websocket": sockets})
)
