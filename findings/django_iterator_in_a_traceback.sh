#!/usr/bin/env bash
# An error that is freed late takes somebody else's transaction with it.
#
# Versions: Django 6.1.3, psycopg 3.3.9 (PostgreSQL 15).
# Needs:    Python 3.12+ (set PYTHON to choose one); PostgreSQL at
#           ${PGHOST:-127.0.0.1}:${PGPORT:-5432}, user ${PGUSER:-postgres}, database ${PGDATABASE:-postgres}.
#           It makes a temporary table only.
# Expected: a transaction that was rolled back is over: nothing of it acts on the next one.
# Happens:  a loop over iterator(), which is in a variable, raises inside of atomic(). The traceback
#           keeps the variable, and so the iterator, whose cursor ended with the transaction. When
#           the error is freed, Django closes that cursor on the connection, in whatever transaction
#           is open there by then. The server knows no such cursor and aborts the transaction; Python
#           only writes "Exception ignored" to stderr, and atomic() ends without an error.
# Hurt:     whoever keeps an error a little longer: a task or a future that nobody looked at yet, a
#           list of failures in a batch job, a tool that reports errors from another thread.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet Django==6.1.3 "psycopg[binary]==3.3.9"
cd "$work"

cat >program.py <<'EOF'
import os

import django
from django.conf import settings

database = {
    "ENGINE": "django.db.backends.postgresql",
    "HOST": os.environ.get("PGHOST", "127.0.0.1"),
    "PORT": os.environ.get("PGPORT", "5432"),
    "USER": os.environ.get("PGUSER", "postgres"),
    "NAME": os.environ.get("PGDATABASE", "postgres"),
}
settings.configure(DATABASES={"default": database})
django.setup()
from django.db import connection, models, transaction  # noqa: E402


class Order(models.Model):
    class Meta:
        app_label = "shop"
        db_table = "orders"


with connection.cursor() as cursor:
    cursor.execute("CREATE TEMPORARY TABLE orders (id int PRIMARY KEY)")
Order.objects.bulk_create(Order(id=number) for number in range(5))


def report():
    with transaction.atomic():
        orders = Order.objects.iterator(chunk_size=1)
        for order in orders:
            raise ValueError("this order can't be reported")


def save(number, between):
    with transaction.atomic():
        Order.objects.create(id=number)
        transaction.on_commit(lambda: print("on_commit: ran"))
        between()
    print("atomic(): no error - row:", Order.objects.filter(id=number).exists())


failures = []
try:
    report()
except ValueError as error:
    failures.append(error)
save(10, lambda: print("the error is kept"))
save(11, failures.clear)
EOF

cat >expected <<'EOF'
the error is kept
on_commit: ran
atomic(): no error - row: True
on_commit: ran
atomic(): no error - row: False
EOF

venv/bin/python program.py 2>complaints | tee seen
diff expected seen
grep "InvalidCursorName" complaints
