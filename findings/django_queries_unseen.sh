#!/usr/bin/env bash
# What watches Django's queries sees no procedure, and no error of a fetch.
#
# Versions: Django 6.1.3, psycopg 3.3.9 (PostgreSQL 15).
# Needs:    Python 3.12+ (set PYTHON to choose one); PostgreSQL at PGHOST (127.0.0.1), PGPORT, as
#           PGUSER (postgres), database postgres. It reads, and leaves nothing behind.
# Expected: connection.execute_wrapper() is called around whatever is sent to the database, and
#           CaptureQueriesContext, which assertNumQueries() is made of, lists it.
# Happens:  cursor.callproc() goes to the driver past both. Of a loop over iterator() in atomic()
#           they see BEGIN, the statement that declares the cursor, and ROLLBACK: it has succeeded
#           and taken no time, also where a fetch is slow or fails. The error comes to the caller,
#           and no wrapper is told.
# Hurt:     whoever times or counts queries, or notes errors, with a wrapper: tools that trace, and
#           tests that count. A report that spends a minute in a procedure makes "0 queries".
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet Django==6.1.3 'psycopg[binary]==3.3.9'
cd "$work"

cat >program.py <<'EOF'
import os

import django
from django.conf import settings

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ.get("PGHOST", "127.0.0.1"),
            "PORT": os.environ.get("PGPORT", "5432"),
            "USER": os.environ.get("PGUSER", "postgres"),
            "PASSWORD": os.environ.get("PGPASSWORD", ""),
            "NAME": "postgres",
        }
    }
)
django.setup()
from django.db import DatabaseError, connection, models, transaction  # noqa: E402
from django.db.models.expressions import RawSQL  # noqa: E402
from django.test.utils import CaptureQueriesContext  # noqa: E402


class Setting(models.Model):
    name = models.TextField(primary_key=True)

    class Meta:
        app_label = "findings"
        db_table = "pg_settings"
        managed = False


seen = []


def watch(execute, sql, params, many, context):
    try:
        result = execute(sql, params, many, context)
    except Exception as error:
        seen.append(type(error).__name__)
        raise
    seen.append("ok")
    return result


def call_a_procedure():
    with connection.cursor() as cursor:
        cursor.callproc("pg_sleep", [0])


def read_rows_of_which_the_sixth_fails():
    quotient = RawSQL("1 / (row_number() OVER (ORDER BY name) - 6)", [])
    rows = Setting.objects.annotate(quotient=quotient).order_by("name")
    try:
        with transaction.atomic():
            for _ in rows.iterator(chunk_size=2):
                pass
    except DatabaseError as error:
        print("the caller has", type(error).__name__)


def select_what_fails():
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")
    except DatabaseError as error:
        print("the caller has", type(error).__name__)


for do in (call_a_procedure, read_rows_of_which_the_sixth_fails, select_what_fails):
    seen.clear()
    with connection.execute_wrapper(watch), CaptureQueriesContext(connection) as queries:
        do()
    print(f"{do.__name__}: the wrapper saw {seen}, {len(queries)} queries captured")
EOF

cat >expected <<'EOF'
call_a_procedure: the wrapper saw [], 0 queries captured
the caller has DataError
read_rows_of_which_the_sixth_fails: the wrapper saw ['ok'], 3 queries captured
the caller has DataError
select_what_fails: the wrapper saw ['DataError'], 1 queries captured
EOF

venv/bin/python program.py | tee seen
diff expected seen
