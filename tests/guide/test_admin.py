"""The admin under the middleware, of which ``guide/asgi`` speaks."""

# A whole project: the site of the tests has no admin.
PROJECT = """
import asyncio
import threading
import warnings
from urllib.parse import urlencode

import django
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from django.urls import path

used = "admin auth contenttypes messages sessions".split()
settings.configure(
    ALLOWED_HOSTS=["localhost"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "project.sqlite3"}},
    INSTALLED_APPS=[f"django.contrib.{each}" for each in used],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for tests only",
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
)
django.setup()

from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.db import connections
from django.test import Client
from ormbridge import BridgeMiddleware, database_sync_to_async

threads = []
awaited = []


async def rename(queryset):
    async for group in queryset:
        group.name = "renamed"
        await group.asave()


def awaits_itself(modeladmin, request, queryset):
    async_to_sync(rename)(queryset)


async def is_never_awaited(modeladmin, request, queryset):
    awaited.append(request)


class GroupAdmin(admin.ModelAdmin):
    actions = [awaits_itself, is_never_awaited]

    def get_queryset(self, request):
        threads.append(threading.current_thread().name)
        return super().get_queryset(request)


admin.site.unregister(Group)
admin.site.register(Group, GroupAdmin)
urlpatterns = [path("admin/", admin.site.urls)]
application = BridgeMiddleware(get_asgi_application())


async def ask(cookie, **form):
    threads.clear()
    token = "a" * 32
    body = urlencode({**form, "csrfmiddlewaretoken": token}).encode()
    headers = {
        "host": "localhost",
        "cookie": f"sessionid={cookie}; csrftoken={token}",
        "content-type": "application/x-www-form-urlencoded",
        "content-length": str(len(body)),
    }
    scope = {"type": "http", "method": "POST" if form else "GET", "path": "/admin/auth/group/"}
    scope["headers"] = [(key.encode(), value.encode()) for key, value in headers.items()]
    client = ApplicationCommunicator(application, scope)
    await client.send_input({"type": "http.request", "body": body if form else b""})
    status = (await client.receive_output(60))["status"]
    while (await client.receive_output(60)).get("more_body"):
        pass
    await client.wait(60)
    (thread,) = set(threads)
    return f"{status} on {thread.rstrip('0123456789')}"


async def main(cookie, group):
    print("page:", await ask(cookie))
    form = {"_selected_action": group, "index": 0}
    print("action:", await ask(cookie, action="awaits_itself", **form))
    names = database_sync_to_async(lambda: [each.name for each in Group.objects.all()])
    print("it awaited:", await names())
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        print("async action:", await ask(cookie, action="is_never_awaited", **form))
    print(*{str(each.message) for each in warned if each.category is RuntimeWarning})
    print("it ran:", bool(awaited))


call_command("migrate", verbosity=0)
client = Client()
client.force_login(User.objects.create_superuser("ada"))
group = Group.objects.create(name="editors")
connections.close_all()
asyncio.run(main(client.cookies["sessionid"].value, group.pk))
"""
SAID = """\
page: 200 on ormbridge-worker-
action: 302 on ormbridge-worker-
it awaited: ['renamed']
async action: 302 on ormbridge-worker-
coroutine 'is_never_awaited' was never awaited
it ran: False
"""


def test_admin(run_script):
    """A request to the admin runs on one worker; its actions may not be coroutine functions."""
    assert run_script(PROJECT) == SAID
