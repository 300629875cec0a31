#!/usr/bin/env bash
# Under ASGI a middleware's process_response cannot reset what process_request has set.
#
# Versions: Django 6.1.3, asgiref 3.13.0 (Python 3.13).
# Needs:    Python 3.12+ (set PYTHON to choose one).
# Expected: the two methods belong to one request. A view sees the ContextVar that process_request
#           set, under ASGI too, so process_response may reset it with the token.
# Happens:  Django calls each method through sync_to_async, in a copy of the context, and asgiref
#           carries over the values, not the tokens: reset() raises ValueError "… was created in a
#           different Context", and every request is a 500. Under WSGI, and in tests with Client,
#           the same middleware works.
# Hurt:     middleware for tenants, current users and request ids that keeps a token, as the
#           documentation of contextvars shows it: it breaks as the site moves to ASGI. Set the
#           variable to what it was, or write one function around the request, in both forms.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet Django==6.1.3 asgiref==3.13.0
cd "$work"

cat >program.py <<'EOF'
import asyncio
from contextvars import ContextVar

import django
from django.conf import settings

settings.configure(
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=[f"{__name__}.Tenants"],
    DEBUG_PROPAGATE_EXCEPTIONS=True,
)
django.setup()

from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from django.utils.deprecation import MiddlewareMixin

tenant = ContextVar("tenant", default="nobody")


class Tenants(MiddlewareMixin):
    """Keeps the token, as the documentation of contextvars shows it."""

    def process_request(self, request):
        """Set the tenant of the request."""
        request.token = tenant.set("ada")

    def process_response(self, request, response):
        """Take it back."""
        print("the variable is", tenant.get())
        tenant.reset(request.token)
        return response


async def view(request):
    """Say who it is."""
    return HttpResponse(tenant.get())


urlpatterns = [path("", view)]

print("WSGI:", Client().get("/").text)
try:
    print("ASGI:", asyncio.run(AsyncClient().get("/")).text)
except ValueError as error:
    print("ASGI:", type(error).__name__, "…", str(error)[-34:])
EOF

cat >expected <<'EOF'
the variable is ada
WSGI: ada
the variable is ada
ASGI: ValueError … was created in a different Context
EOF

venv/bin/python program.py | tee seen
diff expected seen
