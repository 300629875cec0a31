import asyncio
import os

from django.core.asgi import get_asgi_application
from django.db import DatabaseError, connection

from ormbridge import BridgeMiddleware, PoolTimeout, database_sync_to_async

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mysite.settings")

SECONDS = 2


@database_sync_to_async
def ask_database():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


async def ready():
    try:
        async with asyncio.timeout(SECONDS):
            await ask_database()
    except (DatabaseError, PoolTimeout, TimeoutError):
        return False
    return True


def with_health(application):
    async def answer(scope, receive, send):
        path = scope["path"] if scope["type"] == "http" else None
        if path == "/alive/":  # <--
            status = 200
        elif path == "/ready/":  # <--
            status = 200 if await ready() else 503
        else:
            await application(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    return answer


application = with_health(BridgeMiddleware(get_asgi_application()))
