import os

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import path

from ormbridge import BridgeMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")
django_application = get_asgi_application()

# After that line, because it imports models.
from mysite.consumers import SignConsumer

application = ProtocolTypeRouter(
    {
        "http": django_application,
        "websocket": URLRouter([path("sign/", SignConsumer.as_asgi())]),
    }
)
application = BridgeMiddleware(application)  # <--
