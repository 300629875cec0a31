import asyncio

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connection
from django.db.backends.signals import connection_created
from django.http import HttpResponse
from django.urls import path

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "requests.sqlite3",
            "CONN_MAX_AGE": 60,
        }
    },
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
)
django.setup()


def answer(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        return HttpResponse(cursor.fetchone()[0])


urlpatterns = [path("", answer)]
application = get_asgi_application()  # <--

opened = []


def note(connection, **kwargs):
    connection.inc_thread_sharing()  # so that the main thread may close it
    opened.append(connection)


connection_created.connect(note)


async def get():
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    events = [{"type": "http.request"}]

    async def receive():
        return events.pop() if events else await asyncio.Future()

    async def send(message):
        pass

    await application(scope, receive, send)


async def main():
    await asyncio.gather(*[get() for _ in range(100)])
    left = [each for each in opened if each.connection is not None]
    print(f"100 requests opened {len(opened)} connections and left {len(left)} open")


if __name__ == "__main__":
    asyncio.run(main())
    for each in opened:
        each.close()
