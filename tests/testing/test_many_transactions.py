"""Tests that commit: calls run in parallel, and nobody is connected at their end."""

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connection, connections, transaction

from ormbridge import (
    database_sync_to_async,
)
from ormbridge.testing import many_transactions
from tests.core.support import workers_end
from tests.settings import CHOICE
from tests.support.ways import count_and_close

# async_transactional_db.


@pytest.mark.parametrize("run", ["one", "two"])
async def test_committed_tests_start_empty(async_transactional_db, run):
    """What a test commits is gone in the next test: both runs of this one find no user."""
    assert await User.objects.acount() == 0
    await database_sync_to_async(User.objects.create)(username="committed")
    assert await asyncio.to_thread(count_and_close) == 1


async def test_committed_tests_run_in_parallel(async_transactional_db, gate):
    """Calls of a test that commits run at the same time, on several workers."""
    calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(3)]
    await gate.entered(3)
    gate.open.set()
    assert len(set(await asyncio.gather(*calls))) == 3


def test_committed_test_closes_connections(transactional_db):
    """At the end of a test that commits no worker and no thread of asgiref is connected."""
    seen = []

    def note():
        connection.ensure_connection()
        seen.append(connections["default"])

    with many_transactions() as left:
        asyncio.run(database_sync_to_async(note)())
        asyncio.run(sync_to_async(note)())
    assert left == []
    assert [each.connection for each in seen] == [None, None]


def test_committed_test_waits_for_running_calls(transactional_db, late):
    """A call that nobody awaits any more may end before the tables are emptied."""

    async def give_up():
        task = asyncio.create_task(database_sync_to_async(late)())
        await late.entered()
        task.cancel()

    with many_transactions() as left:
        asyncio.run(give_up())
    assert left == []


def test_committed_test_names_who_holds_a_worker(transactional_db, gate, pool_settings):
    """A call that does not end within TIMEOUT is named."""
    pool_settings(TIMEOUT=0.01)

    async def give_up():
        task = asyncio.create_task(database_sync_to_async(gate)())
        await gate.entered()
        task.cancel()

    with many_transactions() as left:
        asyncio.run(give_up())
    gate.open.set()
    workers_end()
    assert left == ["ormbridge-worker-1 is still leased, by tests.core.gate.Gate"]


if CHOICE == "postgresql":  # where others can be disconnected

    def test_committed_test_takes_locks_away(transactional_db, gate, pool_settings):
        """What such a call has locked does not keep Django from emptying the tables."""
        pool_settings(TIMEOUT=0.01)

        def lock():
            with transaction.atomic():
                User.objects.create(username="locked")
                gate()

        async def give_up():
            task = asyncio.create_task(database_sync_to_async(lock)())
            await gate.entered()
            task.cancel()

        connection.ensure_connection()
        with many_transactions() as left:
            asyncio.run(give_up())
        assert len(left) == 1
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = '10s'")
            cursor.execute("LOCK TABLE auth_user")
        gate.open.set()
        workers_end()
