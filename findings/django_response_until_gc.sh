#!/usr/bin/env bash
# Under ASGI, Django 6.1 keeps every response, with its body, until the garbage collector comes by,
# if Python is 3.13.0, or 3.12 before 3.12.8.
#
# Versions: Django 6.1.3, and 6.0.9 to compare; Python 3.13.0 and 3.13.5.
# Needs:    Python 3.12+ (set PYTHON to choose one).
# Expected: a response is freed when it was sent. So it is under WSGI, and was under ASGI in 6.0, but
#           for clients that had gone (ticket 36700).
# Happens:  the handler of 6.1 ends the task group of each request with an exception, and a task group
#           of these Pythons left its exception in a cycle (CPython issue 124958). The traceback has
#           the handler's frame, with the request and its response. The collector counts objects, not
#           bytes: with its default settings, too, many megabytes of answers that were sent are
#           still there.
# Hurt:     who answers with large bodies on an image with such a Python: memory grows to a multiple
#           of what is in flight, and a container may be killed. A StreamingHttpResponse is kept as
#           well, but has no body.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for version in 6.0.9 6.1.3; do
    "${PYTHON:-python3}" -m venv "venv-$version"
    "venv-$version/bin/pip" install --quiet "Django==$version"
done

cat >program.py <<'EOF'
import asyncio
import gc
import io
import weakref

import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["testserver"], MIDDLEWARE=[], ROOT_URLCONF=__name__, SECRET_KEY="for this only"
)
django.setup()

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

REQUESTS = 100
alive = weakref.WeakSet()


def view(request):
    response = HttpResponse(bytes(1_000_000))
    alive.add(response)
    return response


async def async_view(request):
    return view(request)


urlpatterns = [path("sync", view), path("async", async_view)]


def wsgi(runner, place, application=get_wsgi_application()):
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": place,
        "SERVER_NAME": "testserver",
        "SERVER_PORT": "80",
        "wsgi.input": io.BytesIO(),
    }
    response = application(environ, lambda *sent: None)
    b"".join(response)
    response.close()


def asgi(runner, place, application=get_asgi_application()):
    async def request():
        scope = {
            "type": "http",
            "method": "GET",
            "path": place,
            "query_string": b"",
            "headers": [(b"host", b"testserver")],
        }
        messages = asyncio.Queue()  # the client stays: no more than its request
        messages.put_nowait({"type": "http.request", "body": b""})

        async def send(message):
            pass

        await application(scope, messages.get, send)

    runner.run(request())


def count(way, place):
    with asyncio.Runner() as runner:
        way(runner, place)
        gc.collect()
        gc.disable()
        for _ in range(REQUESTS):
            way(runner, place)
        without = len(alive)
        gc.collect()
        left = len(alive)
        gc.enable()
        most = 0
        for _ in range(REQUESTS):
            way(runner, place)
            most = max(most, len(alive))
    print(
        f"{django.__version__}, {way.__name__} {place}: of {REQUESTS} responses of a megabyte "
        f"{without} are left, after a collection {left};",
        "never more than one" if most <= 1 else "ten and more" if most >= 10 else "a few",
        "at a time with the collector's defaults",
    )


count(wsgi, "/sync")
count(asgi, "/sync")
count(asgi, "/async")
EOF

cat >expected <<'EOF'
6.0.9, wsgi /sync: of 100 responses of a megabyte 0 are left, after a collection 0; never more than one at a time with the collector's defaults
6.0.9, asgi /sync: of 100 responses of a megabyte 0 are left, after a collection 0; never more than one at a time with the collector's defaults
6.0.9, asgi /async: of 100 responses of a megabyte 0 are left, after a collection 0; never more than one at a time with the collector's defaults
6.1.3, wsgi /sync: of 100 responses of a megabyte 0 are left, after a collection 0; never more than one at a time with the collector's defaults
6.1.3, asgi /sync: of 100 responses of a megabyte 100 are left, after a collection 0; ten and more at a time with the collector's defaults
6.1.3, asgi /async: of 100 responses of a megabyte 100 are left, after a collection 0; ten and more at a time with the collector's defaults
EOF

mended='import sys; sys.exit(not ((3, 12, 8) <= sys.version_info[:3] != (3, 13, 0)))'
if "venv-6.1.3/bin/python" -c "$mended"; then
    sed -i 's/megabyte 100 are/megabyte 0 are/; s/ten and more/never more than one/' expected
fi
for version in 6.0.9 6.1.3; do
    "venv-$version/bin/python" program.py
done | tee seen
diff expected seen
