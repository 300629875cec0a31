"""The queries of the project. Those who wait are held by the test, with locks of PostgreSQL."""

from django.contrib.auth.models import Group
from django.db import connection

from tests.servers.project import LOCK


def execute(statement: str, *parameters: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


def sleep() -> None:
    """Take 50 ms in the database."""
    execute("SELECT pg_sleep(0.05)")


def wait() -> None:
    """Wait until nobody holds the lock."""
    execute("SELECT pg_advisory_xact_lock_shared(%s)", LOCK)


def count() -> int:
    return Group.objects.count()


def wait_and_insert(name: str) -> None:
    """Wait, then insert: one call with two statements, which a stop must not cut in half."""
    wait()
    Group.objects.create(name=name)
