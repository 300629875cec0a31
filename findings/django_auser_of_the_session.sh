#!/usr/bin/env bash
# In one request, request.user and "await request.auser()" are two people.
#
# Versions: Django 6.1.3, django-oauth-toolkit 3.4.1, django-impersonate 1.9.5 (SQLite; Python 3.13).
# Needs:    Python 3.12+ (set PYTHON to choose one).
# Expected: auser() is the asynchronous form of request.user. If a middleware has put a user there,
#           both give that one.
# Happens:  auser() knows the session alone. A middleware that only sets request.user, as nearly all
#           do that are older than auser() (Django 5.0), is not heard. A view that was made async
#           takes whoever has a token of django-oauth-toolkit for a stranger, @login_required, which
#           asks auser() over such a view, sends them to the login, and an admin who looks at the site
#           as somebody else, by django-impersonate, is the admin again.
# Hurt:     who makes views async one by one behind such a middleware, and who follows the advice to
#           write "request.user = await request.auser()" first: that overwrites the right user. Set
#           request.auser, too, in a middleware after it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet \
    Django==6.1.3 django-oauth-toolkit==3.4.1 django-impersonate==1.9.5
cd "$work"

cat >program.py <<'EOF'
import asyncio
from datetime import timedelta

import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["testserver"],
    AUTHENTICATION_BACKENDS=[
        "django.contrib.auth.backends.ModelBackend",
        "oauth2_provider.backends.OAuth2Backend",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "program.sqlite3"}},
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    INSTALLED_APPS=[
        *(f"django.contrib.{app}" for app in ("auth", "contenttypes", "sessions")),
        *("oauth2_provider", "impersonate"),
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "oauth2_provider.middleware.OAuth2TokenMiddleware",
        "impersonate.middleware.ImpersonateMiddleware",
    ],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for this program only",
)
django.setup()

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.management import call_command
from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from django.utils.timezone import now
from oauth2_provider.models import AccessToken


@login_required
def synchronous(request):
    return HttpResponse(request.user)


@login_required
async def asynchronous(request):
    return HttpResponse(await request.auser())


urlpatterns = [path("sync/", synchronous), path("async/", asynchronous)]

call_command("migrate", verbosity=0)
ann = User.objects.create_user("ann")
admin = User.objects.create_superuser("admin")
AccessToken.objects.create(user=ann, token="of-ann", expires=now() + timedelta(days=1))
client = Client()
client.force_login(admin, "django.contrib.auth.backends.ModelBackend")
session = client.session
session["_impersonate"] = ann.pk
session.save()


async def main():
    for place in ("/sync/", "/async/"):
        answer = await AsyncClient().get(place, headers={"authorization": "Bearer of-ann"})
        print(f"{place} with the token of ann: {answer.content.decode() or answer.headers['location']}")
    for place in ("/sync/", "/async/"):
        browser = AsyncClient()
        browser.cookies = client.cookies
        answer = await browser.get(place)
        print(f"{place} admin, who is to see it as ann: {answer.content.decode()}")


asyncio.run(main())
EOF

cat >expected <<'EOF'
/sync/ with the token of ann: ann
/async/ with the token of ann: /accounts/login/?next=/async/
/sync/ admin, who is to see it as ann: ann
/async/ admin, who is to see it as ann: admin
EOF

venv/bin/python program.py | tee seen
diff expected seen
