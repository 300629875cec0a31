#!/usr/bin/env bash
# statement_timeout does not stop QuerySet.iterator() outside of a transaction.
#
# Versions: Django 6.1.3, psycopg 3.3.9 (PostgreSQL 15).
# Needs:    Python 3.12+ (set PYTHON to choose one); PostgreSQL at
#           ${PGHOST:-127.0.0.1}:${PGPORT:-5432}, user ${PGUSER:-postgres}, database ${PGDATABASE:-postgres}.
#           It makes a temporary table only.
# Expected: a query of 100 rows that take 10 ms each is cancelled under a statement_timeout of
#           200 ms, read at once or by iterator().
# Happens:  outside of a transaction Django declares the cursor of iterator() WITH HOLD. The server
#           fills such a cursor while it commits the DECLARE, when the timeout is no longer armed:
#           all rows come, after a second. Inside of atomic() the timeout holds.
# Hurt:     whoever relies on statement_timeout as the limit of every query: the longest ones, those
#           one reads by iterator(), have none, and keep a connection and a thread for as long.
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
    "OPTIONS": {"options": "-c statement_timeout=200"},
}
settings.configure(DATABASES={"default": database})
django.setup()
from django.db import OperationalError, connection, models, transaction  # noqa: E402


class Row(models.Model):
    class Meta:
        app_label = "findings"
        db_table = "findings_row"


with connection.cursor() as cursor:
    cursor.execute("CREATE TEMPORARY TABLE findings_row AS SELECT generate_series(1, 100) AS id")

sleep = models.Func(models.Value(0.01), function="pg_sleep", output_field=models.TextField())
slow = Row.objects.annotate(slept=sleep)


def read(rows):
    try:
        return f"{sum(1 for _ in rows)} rows"
    except OperationalError as error:
        return str(error).splitlines()[0]


print("at once:", read(slow.all()))
print("iterator(), no transaction:", read(slow.iterator()))
with transaction.atomic():
    print("iterator() in atomic():", read(slow.iterator()))
EOF

cat >expected <<'EOF'
at once: canceling statement due to statement timeout
iterator(), no transaction: 100 rows
iterator() in atomic(): canceling statement due to statement timeout
EOF

venv/bin/python program.py | tee seen
diff expected seen
