#!/usr/bin/env bash
# A caught deadlock splits a transaction: the first half is gone, the second is committed.
#
# Versions: Django 6.1.3, mysqlclient 2.3.2 (MariaDB 10.11).
# Needs:    Python 3.12+ (set PYTHON to choose one) and what mysqlclient is compiled with; MariaDB
#           (10.6.18, 10.11.8, 11.4.2 or later) at ${MYSQL_HOST:-127.0.0.1}:${MYSQL_TCP_PORT:-3306}, user root,
#           password ${MYSQL_PWD:-}. It makes a scratch database and drops it.
# Expected: after an error inside of a transaction either only that statement is undone (as with a
#           lock wait timeout) or the transaction refuses all that follows (as in PostgreSQL).
# Happens:  error 1213 (deadlock) rolls back the whole transaction and says so to nobody else: the
#           statements that follow start a new one, which atomic() commits without an error. Error
#           1020 (a row that was changed since the snapshot, under innodb_snapshot_isolation, which
#           MariaDB 11.8 has on by default) does likewise at REPEATABLE READ.
# Hurt:     whoever catches OperationalError around a SELECT ... FOR UPDATE inside of atomic(), for
#           instance to try it once more: the payment is saved, the order before it is not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet Django==6.1.3 mysqlclient==2.3.2
cd "$work"

cat >program.py <<'EOF'
import os
import threading

import django
import MySQLdb
from django.conf import settings

server = {
    "host": os.environ.get("MYSQL_HOST", "127.0.0.1"),
    "port": int(os.environ.get("MYSQL_TCP_PORT", "3306")),
    "user": "root",
    "password": os.environ.get("MYSQL_PWD", ""),
}
name = f"findings_{os.getpid()}"
database = {
    "ENGINE": "django.db.backends.mysql",
    "HOST": server["host"],
    "PORT": server["port"],
    "USER": server["user"],
    "PASSWORD": server["password"],
    "NAME": name,
}
snapshot = {"isolation_level": "repeatable read", "init_command": "SET innodb_snapshot_isolation = 1"}
settings.configure(DATABASES={"default": database, "snapshot": {**database, "OPTIONS": snapshot}})
django.setup()
from django.db import OperationalError, connections, transaction  # noqa: E402


def lock(cursor, key):
    """Lock the row *key*; return the number of the error, if any, which is caught."""
    try:
        cursor.execute("SELECT n FROM locked WHERE id = %s FOR UPDATE", [key])
    except OperationalError as error:
        return error.args[0]
    return None


def transact(using, prepare, interfere):
    """Write a row, lock another while *interfere* works against it, write one more."""
    with connections[using].cursor() as cursor:
        cursor.execute("DELETE FROM written")
        with transaction.atomic(using=using):
            cursor.execute("INSERT INTO written VALUES ('before')")
            prepare(cursor)
            other = interfere()
            number = lock(cursor, 2)
            cursor.execute("INSERT INTO written VALUES ('after')")
            transaction.on_commit(lambda: print("on_commit: ran"), using=using)
        if other is not None:
            other.join()
        cursor.execute("SELECT word FROM written")
        print(f"error {number}, caught; atomic(): no error; rows:", [word for (word,) in cursor.fetchall()])


def cross():
    """Lock row 2, then row 1 in a thread. It has written more, so it is not the one rolled back."""
    rival = MySQLdb.connect(**server, database=name)
    rival_cursor = rival.cursor()
    rival_cursor.executemany("INSERT INTO filler VALUES (%s)", [(n,) for n in range(1000)])
    rival_cursor.execute("UPDATE locked SET n = 1 WHERE id = 2")

    def second():
        rival_cursor.execute("SELECT n FROM locked WHERE id = 1 FOR UPDATE")
        rival.commit()
        rival.close()

    thread = threading.Thread(target=second)
    thread.start()
    return thread


def change():
    """Change row 2 and commit."""
    rival = MySQLdb.connect(**server, database=name)
    rival.cursor().execute("UPDATE locked SET n = n + 1 WHERE id = 2")
    rival.commit()
    rival.close()


administrator = MySQLdb.connect(**server, autocommit=True)
administrator.cursor().execute(f"CREATE DATABASE {name}")
try:
    with connections["default"].cursor() as cursor:
        cursor.execute("CREATE TABLE written (word varchar(10)) ENGINE = InnoDB")
        cursor.execute("CREATE TABLE filler (n int) ENGINE = InnoDB")
        cursor.execute("CREATE TABLE locked (id int PRIMARY KEY, n int) ENGINE = InnoDB")
        cursor.execute("INSERT INTO locked VALUES (1, 0), (2, 0)")
    transact("default", lambda cursor: lock(cursor, 1), cross)
    transact("snapshot", lambda cursor: cursor.execute("SELECT n FROM locked"), change)
finally:
    connections.close_all()
    administrator.cursor().execute(f"DROP DATABASE {name}")
EOF

cat >expected <<'EOF'
on_commit: ran
error 1213, caught; atomic(): no error; rows: ['after']
on_commit: ran
error 1020, caught; atomic(): no error; rows: ['after']
EOF

venv/bin/python program.py | tee seen
diff expected seen
