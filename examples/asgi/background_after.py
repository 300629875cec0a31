import asyncio

import django
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

from ormbridge import BridgeMiddleware  # <--


def sync_middleware(get_response):
    return lambda request: get_response(request)


settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "tasks.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    MIDDLEWARE=["__main__.sync_middleware"],
    ROOT_URLCONF="__main__",
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command

tasks = set()
response_is_sent = asyncio.Event()


async def count_users():
    await response_is_sent.wait()
    try:
        print(f"task: {await User.objects.acount()} users")
    except RuntimeError as error:
        print(f"task: RuntimeError: {error}")


async def start(request):
    task = asyncio.create_task(count_users())
    tasks.add(task)  # or Python may collect it
    return HttpResponse("started")


urlpatterns = [path("start/", start)]
application = BridgeMiddleware(get_asgi_application())  # <--


async def main():
    client = ApplicationCommunicator(
        application, {"type": "http", "method": "GET", "path": "/start/", "headers": []}
    )
    await client.send_input({"type": "http.request"})
    print(f"response: {(await client.receive_output(timeout=30))['status']}")
    await client.wait(timeout=30)
    response_is_sent.set()
    await asyncio.wait(tasks)


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    asyncio.run(main())
