#!/usr/bin/env bash
# A COMMIT that saves nothing returns without an error.
#
# Versions: Django 6.1.3, psycopg 3.3.9 (PostgreSQL 15).
# Needs:    Python 3.12+ (set PYTHON to choose one); PostgreSQL at
#           ${PGHOST:-127.0.0.1}:${PGPORT:-5432}, user ${PGUSER:-postgres}, database ${PGDATABASE:-postgres}.
#           It makes temporary tables only.
# Expected: after an error that was caught inside of a transaction, commit() raises,
#           for the server cannot commit; functions given to on_commit() do not run.
# Happens:  the server answers COMMIT with ROLLBACK. psycopg's commit() takes that for success, and
#           so does Django's atomic(): the row is lost, and the on_commit functions run.
# Hurt:     whoever catches a statement_timeout or a lock_timeout inside of atomic() and issues no
#           query afterwards: the mail of on_commit() goes out for an order that is not there.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet Django==6.1.3 "psycopg[binary]==3.3.9"
cd "$work"

cat >program.py <<'EOF'
import os

import django
import psycopg
from django.conf import settings

host = os.environ.get("PGHOST", "127.0.0.1")
port = os.environ.get("PGPORT", "5432")
user = os.environ.get("PGUSER", "postgres")
name = os.environ.get("PGDATABASE", "postgres")
INSERT = "INSERT INTO orders VALUES (1)"
COUNT = "SELECT count(*) FROM orders"


def plain(end):
    """Insert a row, catch a timeout, end the transaction with *end*."""
    with psycopg.connect(host=host, port=port, user=user, dbname=name) as connection:
        connection.execute("CREATE TEMPORARY TABLE orders (id int)")
        connection.commit()
        connection.execute(INSERT)
        connection.execute("SET LOCAL statement_timeout = 50")
        try:
            connection.execute("SELECT pg_sleep(2)")
        except psycopg.errors.QueryCanceled:
            pass
        answer = end(connection)
        return answer, connection.execute(COUNT).fetchone()[0]


answer, rows = plain(lambda connection: connection.execute("COMMIT").statusmessage)
print("psycopg execute('COMMIT'): server answers", answer, "- rows:", rows)
answer, rows = plain(lambda connection: connection.commit())
print("psycopg commit(): returns", answer, "- rows:", rows)

database = {"ENGINE": "django.db.backends.postgresql", "HOST": host, "PORT": port, "USER": user, "NAME": name}
settings.configure(DATABASES={"default": database})
django.setup()
from django.db import OperationalError, connection, transaction  # noqa: E402

with connection.cursor() as cursor:
    cursor.execute("CREATE TEMPORARY TABLE orders (id int)")
    with transaction.atomic():
        cursor.execute(INSERT)
        transaction.on_commit(lambda: print("Django on_commit: ran"))
        cursor.execute("SET LOCAL statement_timeout = 50")
        try:
            cursor.execute("SELECT pg_sleep(2)")
        except OperationalError:
            pass
    cursor.execute(COUNT)
    print("Django atomic(): no error - rows:", cursor.fetchone()[0])
EOF

cat >expected <<'EOF'
psycopg execute('COMMIT'): server answers ROLLBACK - rows: 0
psycopg commit(): returns None - rows: 0
Django on_commit: ran
Django atomic(): no error - rows: 0
EOF

venv/bin/python program.py | tee seen
diff expected seen
