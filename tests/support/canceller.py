"""Who holds tables that others wait for, and who stops what waits."""

import asyncio
import importlib
import threading
from contextlib import asynccontextmanager

import pytest
from django.db import connection, connections

from ormbridge.asgi.context import LeaseContext
from ormbridge.asgi.sync_to_async import on_route
from tests.core.gate import GUARD
from tests.settings import CHOICE

postgresql = pytest.mark.skipif(
    CHOICE != "postgresql", reason="only on PostgreSQL are statements cancelled"
)


class Outside:
    """Someone else on the server: holds the tables of users and groups until told otherwise."""

    def __init__(self):
        psycopg = importlib.import_module("psycopg")
        database = connections["default"].get_connection_params()
        names = ("host", "port", "user", "password", "dbname")
        address = {name: database[name] for name in names if name in database}
        self.holder = psycopg.connect(**address)
        self.watcher = psycopg.connect(**address, autocommit=True)
        self.hold()

    def hold(self):
        """Take the tables."""
        tables = "auth_user, auth_group, auth_user_groups"
        self.holder.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")

    def waiting(self):
        """Return how many statements wait for the tables."""
        return self._count("wait_event_type = 'Lock'")

    def at_work(self):
        """Return how many statements are not done, those that wait included."""
        return self._count("state = 'active' AND pid <> pg_backend_pid()")

    def _count(self, condition):
        (number,) = self.watcher.execute(
            "SELECT count(*) FROM pg_stat_activity"
            f" WHERE datname = current_database() AND {condition}"
        ).fetchone()
        return number

    async def sees(self, number):
        """Wait until *number* statements wait for the tables."""
        async with asyncio.timeout(GUARD):
            while self.waiting() != number:  # noqa: ASYNC110 - the server changes it
                await asyncio.sleep(0.001)

    def let_go(self):
        """Let those who wait have the tables."""
        self.holder.rollback()

    def close(self):
        self.holder.close()
        self.watcher.close()


def cancellers():
    return [each for each in threading.enumerate() if each.name == "ormbridge-canceller"]


async def cancelled(task):
    """Cancel *task*, and wait until it has noticed."""
    task.cancel()
    await asyncio.wait([task], timeout=GUARD)
    assert task.cancelled()


@asynccontextmanager
async def in_context(holds=False):
    """Have the block be a request, which holds its worker, or a socket."""
    context = LeaseContext("test", holds=holds)
    with on_route(context):
        try:
            yield
        finally:
            context.release(end=True)


def pid():
    connection.ensure_connection()
    return connection.connection.info.backend_pid
