import asyncio
import sqlite3

import django
from django.conf import settings

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "shop.sqlite3",
            "OPTIONS": {"timeout": 0.1},  # seconds; 5 without
        },
        "scratch": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
    },
)
django.setup()

from django.db import connection, connections, transaction


def run(sql, alias="default"):
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


def on_another_thread(function, *args):
    return asyncio.run(asyncio.to_thread(function, *args))


def write_at_the_same_time():
    with transaction.atomic():
        run("INSERT INTO stock VALUES (1)")
        on_another_thread(run_and_close, "INSERT INTO stock VALUES (2)")


def run_and_close(sql):
    try:
        run(sql)
    finally:
        connection.close()


def write_to_a_database_in_memory_that_threads_share():
    one, other = [sqlite3.connect("file:shop?mode=memory&cache=shared", uri=True) for _ in "ab"]
    one.execute("CREATE TABLE stock (amount int)")
    one.execute("INSERT INTO stock VALUES (1)")
    try:
        other.execute("INSERT INTO stock VALUES (2)")
    finally:
        one.close()
        other.close()


def find_the_table_of_another_thread():
    run("CREATE TABLE stock (amount int)", "scratch")
    try:
        on_another_thread(read_scratch)
    finally:
        connections["scratch"].connection.close()


def read_scratch():
    try:
        run("SELECT * FROM stock", "scratch")
    finally:
        connections["scratch"].connection.close()


def use_a_connection_of_another_thread():
    own = sqlite3.connect(":memory:")
    try:
        on_another_thread(own.execute, "SELECT 1")
    finally:
        own.close()


def query_a_closed_connection():
    own = sqlite3.connect(":memory:")
    own.close()
    own.execute("SELECT 1")


MISTAKES = [
    write_at_the_same_time,
    write_to_a_database_in_memory_that_threads_share,
    find_the_table_of_another_thread,
    use_a_connection_of_another_thread,
    query_a_closed_connection,
]

if __name__ == "__main__":
    run("CREATE TABLE stock (amount int)")
    for make in MISTAKES:
        try:
            make()
        except Exception as error:
            print(f"{make.__name__}: {type(error).__name__}: {error}")
    connections.close_all()
