#!/usr/bin/env bash
# A wrapper of queries that AppConfig.ready() installs works under gunicorn, and never under uvicorn.
#
# Versions: Django 6.1.3, gunicorn 27.0.1, uvicorn 0.54.0, asgiref 3.13.0 (SQLite).
# Needs:    Python 3.12+ (set PYTHON to choose one).
# Expected: connection.execute_wrappers.append(guard) in ready() installs the guard for the process.
# Happens:  connection is that of the thread: ready() has put it on the main thread's. gunicorn's
#           sync worker serves requests there, so every query passes the guard. uvicorn runs a sync
#           view, and the a-methods of an async one, on another thread: no query passes it, and
#           nothing says so. A receiver of connection_created that installs it works in both.
# Hurt:     projects that set the tenant, refuse writes or time queries so, as many do: the guard
#           is off from the day the site moves from WSGI to ASGI, or to threads.
set -euo pipefail
work=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet Django==6.1.3 asgiref==3.13.0 gunicorn==27.0.1 \
    uvicorn==0.54.0
cd "$work"

mkdir guarded
touch guarded/__init__.py
cat >guarded/apps.py <<'EOF'
import os

from django.apps import AppConfig
from django.db import connection
from django.db.backends.signals import connection_created

seen = []


def guard(execute, sql, *args):
    seen.append(sql)
    return execute(sql, *args)


def install(connection, **kwargs):
    if guard not in connection.execute_wrappers:
        connection.execute_wrappers.append(guard)


class Guarded(AppConfig):
    name = "guarded"

    def ready(self):
        if os.environ["INSTALLED_IN"] == "ready":
            install(connection)
        else:
            connection_created.connect(install)
EOF

cat >project.py <<'EOF'
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["guarded"],
    ROOT_URLCONF="project",
)

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.urls import path

from guarded import apps


def view(request):
    apps.seen.clear()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    return HttpResponse(f"{len(apps.seen)} of 1 queries seen")


urlpatterns = [path("", view)]
wsgi, asgi = get_wsgi_application(), get_asgi_application()
EOF

cat >ask.py <<'EOF'
import http.client
import socket
import time


class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("socket")


for _ in range(300):
    try:
        connection = Connection("localhost")
        connection.request("GET", "/")
        print(connection.getresponse().read().decode())
        break
    except OSError:  # it starts
        time.sleep(0.1)
else:
    raise SystemExit("the server does not answer")
EOF

serve() {  # serve <where it is installed> <server> <arguments…>
    printf '%s, %s: ' "$1" "$2"
    INSTALLED_IN=$1 "venv/bin/$2" "${@:3}" >log 2>&1 &
    server=$!
    venv/bin/python ask.py
    kill "$server"
    wait "$server" || true
    server=
    rm -f socket
}

for place in ready connection_created; do
    serve "$place" gunicorn --bind unix:socket project:wsgi
    serve "$place" uvicorn --uds socket project:asgi
done | tee seen

cat >expected <<'EOF'
ready, gunicorn: 1 of 1 queries seen
ready, uvicorn: 0 of 1 queries seen
connection_created, gunicorn: 1 of 1 queries seen
connection_created, uvicorn: 1 of 1 queries seen
EOF
diff expected seen
