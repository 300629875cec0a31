#!/usr/bin/env bash
# Inside of a coroutine django.db.connection is another connection than outside, on the same thread.
#
# Versions: Django 6.1.3, asgiref 3.13.0 (SQLite; the database does not matter).
# Needs:    Python 3.12+ (set PYTHON to choose one).
# Expected: Django keeps one connection for each thread: code on one thread meets one object, and
#           what is done to it in a coroutine is done to the one in use.
# Happens:  connections is a thread-critical Local of asgiref. While a loop runs on the thread it
#           holds a second set. No query of the ORM goes through that one: the asynchronous ORM
#           works on another thread, by the first kind. So in a coroutine execute_wrapper() sees no
#           query, in_atomic_block is False inside of an open transaction, and close_old_connections()
#           closes nothing, all without an error.
# Hurt:     whoever counts or traces queries in an async view or test (0, whatever it does), or
#           closes connections at the end of an async job (they stay open until the server is full).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet Django==6.1.3 asgiref==3.13.0
cd "$work"

cat >program.py <<'EOF'
import asyncio
import threading

import django
from asgiref.sync import sync_to_async
from django.conf import settings

database = {"ENGINE": "django.db.backends.sqlite3", "NAME": "findings.sqlite3"}
settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["django.contrib.contenttypes"])
django.setup()
from django.contrib.contenttypes.models import ContentType  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import close_old_connections, connection, connections, transaction  # noqa: E402

call_command("migrate", verbosity=0)
seen = []


def note(execute, sql, params, many, context):
    seen.append(sql)
    return execute(sql, params, many, context)


def is_open():
    return connections["default"].connection is not None


async def here():
    return threading.get_ident(), connections["default"], connection.in_atomic_block


with transaction.atomic():
    outside = threading.get_ident(), connections["default"], connection.in_atomic_block
    inside = asyncio.run(here())
print("same thread:", outside[0] == inside[0])
print("same connection:", outside[1] is inside[1])
print("in_atomic_block outside, inside:", outside[2], inside[2])

with connection.execute_wrapper(note):
    ContentType.objects.count()
print("queries seen, synchronous:", len(seen))
seen.clear()


async def main():
    with connection.execute_wrapper(note):
        await ContentType.objects.acount()
    print("queries seen, in a coroutine:", len(seen))
    close_old_connections()
    print("open after close_old_connections() in a coroutine:", await sync_to_async(is_open)())
    await sync_to_async(close_old_connections)()
    print("open after sync_to_async(close_old_connections)():", await sync_to_async(is_open)())


asyncio.run(main())
EOF

cat >expected <<'EOF'
same thread: True
same connection: False
in_atomic_block outside, inside: True False
queries seen, synchronous: 1
queries seen, in a coroutine: 0
open after close_old_connections() in a coroutine: True
open after sync_to_async(close_old_connections)(): False
EOF

venv/bin/python program.py | tee seen
diff expected seen
