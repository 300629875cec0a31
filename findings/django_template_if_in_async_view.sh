#!/usr/bin/env bash
# In an async view, "{% if not user.is_authenticated %}" of a template is False for strangers.
#
# Versions: Django 6.1.3 (Python 3.13).
# Needs:    Python 3.12+ (set PYTHON to choose one).
# Expected: an error. "user" of the context processor is request.user, which asks the database when
#           it is first read, and in a coroutine that is a SynchronousOnlyOperation: it is one for
#           "{{ user }}" and for "{% if user.is_authenticated %}".
# Happens:  with "not", "and", "or" or "==" in it, the tag takes every exception for False, this one
#           too. The page answers 200, and its branch for strangers is not shown to them, but the
#           other one: to whoever sends a cookie "sessionid", whatever is in it. Without a cookie
#           there is nothing to look up, and all is well: so it is in most tests.
# Hurt:     views that were made async and kept their templates. "request.user = await
#           request.auser()" before the template is rendered puts it right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet Django==6.1.3
cd "$work"

cat >program.py <<'EOF'
import asyncio

import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["testserver"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "program.sqlite3"}},
    INSTALLED_APPS=[f"django.contrib.{app}" for app in ("auth", "contenttypes", "sessions")],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for this program only",
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "OPTIONS": {"context_processors": ["django.contrib.auth.context_processors.auth"]},
        }
    ],
)
django.setup()

from django.core.exceptions import SynchronousOnlyOperation
from django.core.management import call_command
from django.http import HttpResponse
from django.template import engines
from django.test import AsyncClient
from django.urls import path

BARE = "{% if user.is_authenticated %}for members{% else %}please log in{% endif %}"
NOT = "{% if not user.is_authenticated %}please log in{% else %}for members{% endif %}"


def render(request, source):
    return HttpResponse(engines["django"].from_string(source).render({}, request))


async def bare(request):
    return render(request, BARE)


async def negated(request):
    return render(request, NOT)


async def assigned(request):
    request.user = await request.auser()
    return render(request, NOT)


def synchronous(request):
    return render(request, NOT)


views = [bare, negated, assigned, synchronous]
urlpatterns = [path(f"{each.__name__}/", each) for each in views]


async def main():
    for view in views:
        for cookie in ("", "of nobody"):
            client = AsyncClient()
            if cookie:
                client.cookies["sessionid"] = "a" * 32
            try:
                answer = (await client.get(f"/{view.__name__}/")).content.decode()
            except SynchronousOnlyOperation as error:
                answer = type(error).__name__
            print(f"{view.__name__}, {f'a cookie {cookie}' if cookie else 'no cookie'}: {answer}")


call_command("migrate", verbosity=0)
asyncio.run(main())
EOF

cat >expected <<'EOF'
bare, no cookie: please log in
bare, a cookie of nobody: SynchronousOnlyOperation
negated, no cookie: please log in
negated, a cookie of nobody: for members
assigned, no cookie: please log in
assigned, a cookie of nobody: please log in
synchronous, no cookie: please log in
synchronous, a cookie of nobody: please log in
EOF

venv/bin/python program.py | tee seen
diff expected seen
