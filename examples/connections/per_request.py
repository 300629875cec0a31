import asyncio

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpResponse
from django.urls import path

from ormbridge import BridgeMiddleware

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "requests.sqlite3",
            "CONN_MAX_AGE": 60,
        }
    },
    ORMBRIDGE={"MAX_THREADS": 5},
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
)
django.setup()


def answer(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        return HttpResponse(cursor.fetchone()[0])


urlpatterns = [path("", answer)]
without = get_asgi_application()
application = BridgeMiddleware(without)  # <--

opened = []


def note(connection, **kwargs):
    connection.inc_thread_sharing()  # so that the main thread may close it
    opened.append(connection)


connection_created.connect(note)


async def get(application):
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    events = [{"type": "http.request"}]

    async def receive():
        return events.pop() if events else await asyncio.Future()

    async def send(message):
        pass

    await application(scope, receive, send)


async def main(application):
    await asyncio.gather(*[get(application) for _ in range(100)])


if __name__ == "__main__":
    for word, each in [("without", without), ("with", application)]:
        asyncio.run(main(each))
        left = [connection for connection in opened if connection.connection is not None]
        print(f"{word}: 100 requests open {len(opened)} connections and leave {len(left)} open")
        if each is without:  # workers close their own
            for connection_left in left:
                connection_left.close()
        opened.clear()
