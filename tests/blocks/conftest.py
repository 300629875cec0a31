"""Fixtures of the tests of blocks: nothing is left open, and who comes beside."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.db import (
    connections,
)
from django.db.backends.base.base import BaseDatabaseWrapper

from ormbridge import (
    BridgeMiddleware,
)
from tests.core.gate import GUARD
from tests.settings import CHOICE
from tests.support.blocks import (
    assert_whole,
)
from tests.support.lost import ran


@pytest.fixture(autouse=True)
def whole(own_pool):
    """See after each test that no lease and no transaction was left open."""
    discarded = []
    yield discarded.append
    assert_whole(sum(discarded))


@pytest.fixture
def parallel_transactions(connection_settings):
    """Have a transaction of SQLite take its lock with the first statement, not with BEGIN."""
    if CHOICE == "sqlite":
        options = connections.settings["default"]["OPTIONS"]
        connection_settings(OPTIONS={**options, "transaction_mode": "DEFERRED"})


@pytest.fixture
def record(monkeypatch):
    """Return a list of what begins and ends on the connections, savepoints by their depth.

    Once in :func:`note`, what is written is in it too.
    """
    seen = []

    def watch(name, word):
        original = getattr(BaseDatabaseWrapper, name)

        def watched(self, *args):
            seen.append(word)
            return original(self, *args)

        monkeypatch.setattr(BaseDatabaseWrapper, name, watched)

    watch("_savepoint", "SAVEPOINT")
    watch("_savepoint_commit", "RELEASE")
    watch("_savepoint_rollback", "ROLLBACK TO")
    watch("_commit", "COMMIT")
    watch("_rollback", "ROLLBACK")
    return seen


@pytest.fixture
def visit(pool_settings):
    """Return a function that runs a coroutine function in a request or connection."""

    async def run_in(scope, lease, work):
        async def application(scope, receive, send):
            outcome.append(await work())

        outcome = []
        pool_settings(**lease)
        scope = {"type": scope, "method": "GET", "path": "/"}
        async with asyncio.timeout(GUARD):
            await BridgeMiddleware(application)(scope, mock.AsyncMock(), mock.AsyncMock())
        return outcome[0]

    return run_in


@pytest.fixture
def other_database(connection_settings, tmp_path):
    """Make "other" a database that can be written beside "default".

    A second connection to the same file would wait for the first one's transaction on SQLite.
    """
    if CHOICE == "sqlite":
        connection_settings("other", NAME=tmp_path / "other.sqlite3")

        def create_table():
            with connections["other"].schema_editor() as editor:
                editor.create_model(User)
            connections["other"].close()

        with ThreadPoolExecutor(1) as executor:
            executor.submit(create_table).result(GUARD)


@pytest.fixture
def nothing_ran(pool_settings):
    """Let there be one worker, and nothing that ran."""
    pool_settings(MAX_THREADS=1)
    ran.clear()
