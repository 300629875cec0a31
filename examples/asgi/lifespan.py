import os

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

from ormbridge import BridgeMiddleware

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")


async def lifespan(scope, receive, send):
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            print("the server starts")
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            print("the server stops")
            await send({"type": "lifespan.shutdown.complete"})
            return


application = BridgeMiddleware(
    ProtocolTypeRouter({"http": get_asgi_application(), "lifespan": lifespan})  # <--
)
