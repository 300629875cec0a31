#!/usr/bin/env bash
# A call of channels.db undoes the transaction around it, without an error, whatever it calls.
#
# Versions: Django 6.1.3, Channels 4.3.2, asgiref 3.13.0, django-reversion 6.4.0 (SQLite; the
#           database does not matter).
# Needs:    Python 3.12+ (set PYTHON to choose one).
# Expected: database_sync_to_async closes connections that are too old before and after its call. One
#           that is in the middle of a transaction is in use, and stays open.
# Happens:  close_old_connections() asks each connection of its thread whether autocommit is as in
#           the settings. In a transaction it is not, so the connection is closed. Below synchronous
#           code the call has the thread, and so the connection, of that code. If nothing queries
#           afterwards, atomic() finds a closed connection, and ends without an error: the answer is
#           200, the rows are gone, on_commit() is not called, and nothing is logged. A query that comes
#           afterwards fails, since its connection is closed.
# Hurt:     who has django-reversion's RevisionMiddleware, or any synchronous middleware with a
#           transaction, over async views, and who calls async code from a transaction with
#           async_to_sync: to tell a chat, to write a log. One helper with @database_sync_to_async
#           in it is enough, and it need not use the database.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet \
    Django==6.1.3 asgiref==3.13.0 channels==4.3.2 django-reversion==6.4.0
cd "$work"

cat >program.py <<'EOF'
import asyncio

import django
from django.conf import settings

database = {"ENGINE": "django.db.backends.sqlite3", "NAME": "findings.sqlite3"}
settings.configure(
    ALLOWED_HOSTS=["testserver"],
    DATABASES={"default": database},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "reversion"],
    MIDDLEWARE=["reversion.middleware.RevisionMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for this only",
)
django.setup()

import reversion
from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async
from django.contrib.auth.models import Group
from django.core.asgi import get_asgi_application
from django.core.management import call_command
from django.db import ProgrammingError, connection, transaction
from django.http import HttpResponse
from django.urls import path
from reversion.models import Revision

call_command("migrate", verbosity=0)
reversion.register(Group)


@database_sync_to_async
def tell():
    """Use no database."""


async def quiet(request):
    await Group.objects.acreate(name="quiet")
    return HttpResponse()


async def telling(request):
    await Group.objects.acreate(name="telling")
    await tell()
    return HttpResponse()


async def asking(request):
    await tell()
    try:
        return HttpResponse(await Group.objects.acount())
    except ProgrammingError as error:
        print(error)
        raise


urlpatterns = [path("quiet", quiet), path("telling", telling), path("asking", asking)]


async def post(place, application=get_asgi_application()):
    scope = {
        "type": "http",
        "method": "POST",
        "path": place,
        "query_string": b"",
        "headers": [(b"host", b"testserver")],
    }
    messages, answers = asyncio.Queue(), []
    messages.put_nowait({"type": "http.request", "body": b""})

    async def send(message):
        answers.append(message)

    await application(scope, messages.get, send)
    return answers[0]["status"]


for place in ("/quiet", "/telling", "/asking"):
    status = asyncio.run(post(place))
    saved = Group.objects.filter(name=place[1:]).count()
    print(f"{place}: {status}, {saved} saved, {Revision.objects.count()} revisions in all")
connection.close()


@transaction.atomic
def join():
    Group.objects.create(name="joined")
    transaction.on_commit(lambda: print("on_commit"))
    async_to_sync(tell)()


print("join() returned", join())
print(Group.objects.filter(name="joined").count(), "saved")
EOF

cat >expected <<'EOF'
/quiet: 200, 1 saved, 1 revisions in all
/telling: 200, 0 saved, 1 revisions in all
Cannot operate on a closed database.
/asking: 500, 0 saved, 1 revisions in all
join() returned None
0 saved
EOF

venv/bin/python program.py | tee seen
diff expected seen
