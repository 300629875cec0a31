"""What the tests of lost transactions share: statements that fail, what was saved, a deadlock."""

import functools
import importlib
import threading
from contextlib import suppress

import pytest
from django.contrib.auth.models import Group, User
from django.db import DatabaseError, connection, connections, transaction

from ormbridge import atomic, database_sync_to_async
from tests.core.gate import GUARD
from tests.settings import CHOICE
from tests.support.blocks import assert_whole

on = functools.partial(pytest.mark.skipif, reason="another database's own way to fail")
postgresql = on(CHOICE != "postgresql")
mariadb = on(CHOICE != "mariadb")
sqlite = on(CHOICE != "sqlite")

ran = []


def execute(*statements):
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def execute_and_catch(*statements):
    """Do what fails, and catch it inside the function."""
    with suppress(DatabaseError):
        execute(*statements)


@database_sync_to_async
def groups():
    """Return the names of all groups, sorted."""
    return sorted(Group.objects.values_list("name", flat=True))


async def write(name="before"):
    """Write in the block, and ask for a mail after the commit."""
    await Group.objects.acreate(name=name)
    await database_sync_to_async(transaction.on_commit)(lambda: ran.append(name))


async def assert_lost():
    """See that nothing was saved, that nobody was told it was, and that the next block commits."""
    assert (await groups(), ran) == ([], [])
    assert_whole()
    async with atomic():
        await write("next")
    assert (await groups(), ran) == (["next"], ["next"])


def create_with_a_bad_value():
    Group.objects.create(pk="not a number", name="x")


class Other:
    """Another session that wants what the block has, and has what the block wants."""

    def __init__(self):
        mysql = importlib.import_module("MySQLdb")
        self.raw = mysql.connect(**connections["default"].get_connection_params())
        self.cursor = self.raw.cursor()
        self.cursor.execute("SET autocommit = 0")
        self.waits = threading.Thread(target=self._lock, args=(1,))

    def take(self):
        """Lock the second row, do so much that the other one is the victim; wait for the first."""
        self._lock(2)
        self.cursor.executemany(
            "INSERT INTO auth_user_groups (user_id, group_id) VALUES (%s, 2)", [(1,), (2,), (3,)]
        )
        self.cursor.execute("UPDATE auth_user SET first_name = 'changed' WHERE id IN (2, 3)")
        self.waits.start()

    def _lock(self, pk):
        self.cursor.execute("SELECT * FROM auth_group WHERE id = %s FOR UPDATE", [pk])

    def close(self):
        if self.waits.ident is not None:
            self.waits.join(GUARD)
        self.raw.rollback()
        self.raw.close()


def prepare():
    Group.objects.bulk_create([Group(pk=1, name="a"), Group(pk=2, name="b")])
    User.objects.bulk_create([User(pk=pk, username=str(pk)) for pk in (1, 2, 3)])
