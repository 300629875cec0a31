"""The same consumer twice: as Channels runs it, and inside BridgeMiddleware."""

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import path

django_application = get_asgi_application()

from ormbridge import BridgeMiddleware

from .consumers import QueryConsumer, StatsConsumer
from .meter import BRIDGE, PLAIN

consumer = QueryConsumer.as_asgi()
sockets = URLRouter(
    [
        path("ws/plain/", PLAIN.count(consumer)),
        path("ws/bridge/", BRIDGE.count(BridgeMiddleware(consumer))),
        # Inside, too: what waits for the one thread of the plain side must not hold up the figures.
        path("ws/stats/", BridgeMiddleware(StatsConsumer.as_asgi())),
    ]
)
application = ProtocolTypeRouter(
    {"http": django_application, "websocket": AllowedHostsOriginValidator(sockets)}
)
