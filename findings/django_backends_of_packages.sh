#!/usr/bin/env bash
# Of the same user, has_perm() says True and "await ahas_perm()" says False.
#
# Versions: Django 6.1.3, django-guardian 3.5.2, django-allauth 65.22.1 (SQLite; Python 3.13).
# Needs:    Python 3.12+ (set PYTHON to choose one).
# Expected: an a-method of Django does what its synchronous twin does. Each of the a-methods of the
#           ORM calls its twin on a thread, and so it was with aauthenticate() up to Django 5.1.
# Happens:  those of django.contrib.auth do not. ahas_perm() and its like pass over a backend that has
#           no a-methods, without an error. So has django-guardian's, and there the permissions of
#           objects are gone. aauthenticate() asks the backend for its own aauthenticate(), and
#           ModelBackend has brought one since Django 5.2. It asks the database itself: what a subclass
#           has made of authenticate() is not called. So nobody logs in by e-mail, as django-allauth's
#           backend lets them.
# Hurt:     views that were made async by putting "await" and "a" before each call: users are refused
#           what is theirs. database_sync_to_async(user.has_perm)(…) and the like put it right; so do
#           a-methods in a backend of one's own.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet \
    Django==6.1.3 django-guardian==3.5.2 django-allauth==65.22.1
cd "$work"

cat >program.py <<'EOF'
import asyncio

import django
from django.conf import settings

settings.configure(
    ACCOUNT_LOGIN_METHODS={"email"},
    AUTHENTICATION_BACKENDS=[
        "allauth.account.auth_backends.AuthenticationBackend",
        "guardian.backends.ObjectPermissionBackend",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "program.sqlite3"}},
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    INSTALLED_APPS=[
        *(f"django.contrib.{app}" for app in ("auth", "contenttypes", "sessions")),
        *("guardian", "allauth", "allauth.account"),
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "allauth.account.middleware.AccountMiddleware",
    ],
    SECRET_KEY="for this program only",
)
django.setup()

from django.contrib.auth import aauthenticate, authenticate
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from guardian.shortcuts import assign_perm

call_command("migrate", verbosity=0)
ann = User.objects.create_user("ann", "ann@example.com", "a password")
editors = Group.objects.create(name="editors")
assign_perm("auth.change_group", ann, editors)
login = {"email": "ann@example.com", "password": "a password"}


async def main():
    print("ahas_perm:", await ann.ahas_perm("auth.change_group", editors))
    print("aget_all_permissions:", await ann.aget_all_permissions(editors))
    print("aauthenticate:", await aauthenticate(None, **login))


print("has_perm:", ann.has_perm("auth.change_group", editors))
print("get_all_permissions:", ann.get_all_permissions(editors))
print("authenticate:", authenticate(None, **login))
asyncio.run(main())
EOF

cat >expected <<'EOF'
has_perm: True
get_all_permissions: {'change_group'}
authenticate: ann
ahas_perm: False
aget_all_permissions: set()
aauthenticate: None
EOF

venv/bin/python program.py | tee seen
diff expected seen
