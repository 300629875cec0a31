"""Nobody is connected to a test database any more when Django drops it."""

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections

from ormbridge import database_sync_to_async, stats
from ormbridge.testing.ending import close_everything, disconnect_others, free_before_drop
from tests.core.gate import GUARD, block_until
from tests.core.support import workers_end
from tests.settings import CHOICE


def opened():
    connection.ensure_connection()
    return connections["default"]


def test_close_everything(transactional_db):
    """Workers end and close their connections, asgiref's thread closes its own; calls go on."""
    seen = [asyncio.run(call(opened)()) for call in (database_sync_to_async, sync_to_async)]
    close_everything()
    assert [each.connection for each in seen] == [None, None]
    assert stats().threads == 0
    assert asyncio.run(database_sync_to_async(opened)()).connection is not None


def test_close_everything_does_not_wait_for_ever(gate):
    """A worker whose call does not end is left to itself after a while."""

    async def give_up():
        task = asyncio.create_task(database_sync_to_async(gate)())
        await gate.entered()
        task.cancel()

    asyncio.run(give_up())
    close_everything(0.01)
    assert stats().threads == 0
    gate.open.set()
    workers_end()


@pytest.mark.parametrize("keep", [False, True])
def test_free_before_drop(transactional_db, monkeypatch, keep):
    """As Django is about to drop or keep a database, everything is closed; then Django goes on."""
    creation = connections["default"].creation
    destroy = mock.Mock()
    monkeypatch.setattr(creation, "destroy_test_db", destroy)
    seen = asyncio.run(database_sync_to_async(opened)())
    named = []
    free_before_drop(named.append)
    free_before_drop(named.append)  # where a project overrides pytest-django's fixture
    assert seen.connection is not None
    with mock.patch("ormbridge.testing.ending.disconnect_others", return_value=["somebody"]):
        creation.destroy_test_db("name", keepdb=keep)
    assert seen.connection is None
    assert named == (["somebody"] if CHOICE == "postgresql" and not keep else [])
    destroy.assert_called_once_with("name", keepdb=keep)


if CHOICE == "postgresql":  # the other databases are dropped whoever is connected

    @pytest.fixture
    def other(transactional_db):
        """Open a second connection to the database."""
        other = connection.copy()
        other.connect()
        yield other
        other.close()

    def test_others_are_disconnected(other):
        """Who is still connected is disconnected, and named with the statement it sent last."""
        with other.cursor() as cursor:
            cursor.execute("SELECT 'last words'")
        (message,) = disconnect_others(connection)
        assert "was still in use, by a connection opened on MainThread at " in message
        assert "last words" in message
        assert not other.is_usable()

    def test_who_connected_around_django_is_disconnected(other):
        """Where a connection was opened is not known of one that Django did not make."""
        with mock.patch.dict("ormbridge.testing.ending.places", clear=True):
            (message,) = disconnect_others(connection)
        assert "by a connection opened by another program, or around Django: idle, " in message

    def test_who_is_about_to_leave_is_not_named(other, monkeypatch):
        """A connection that is being closed is given the moment that the server takes for it."""
        monkeypatch.setattr("ormbridge.testing.ending._NOTICED", GUARD)

        def close_once_seen(execute, *arguments):
            execute(*arguments)
            other.close()

        with connection.execute_wrapper(close_once_seen):
            assert disconnect_others(connection) == []

    @pytest.fixture
    def watcher(other):
        """Open a third connection to the database, which comes after *other* by number."""
        watcher = connection.copy()
        watcher.connect()
        if watcher.connection.info.backend_pid < other.connection.info.backend_pid:
            watcher.connection, other.connection = other.connection, watcher.connection
        watcher.inc_thread_sharing()
        yield watcher
        watcher.close()

    def test_who_is_disconnected_is_waited_for(other, watcher, monkeypatch):
        """Who takes long to end, as here for a lock, is waited for."""
        monkeypatch.setattr("ormbridge.testing.ending._NOTICED", GUARD)
        # So that it looks only once whether they leave by themselves.
        time = mock.Mock(monotonic=itertools.count(step=2 * GUARD).__next__)
        monkeypatch.setattr("ormbridge.testing.ending.time", time)
        with other.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE kept ()")  # is dropped as the connection ends
            cursor.execute("SELECT pg_my_temp_schema()::regnamespace::text")
            (schema,) = cursor.fetchone()
        watcher.set_autocommit(False)
        watcher.cursor().execute(f"LOCK TABLE {schema}.kept IN ACCESS SHARE MODE")

        def is_waited_for():
            with watcher.cursor() as cursor:
                cursor.execute("SELECT pg_stat_clear_snapshot()")
                cursor.execute(
                    "SELECT FROM pg_stat_activity WHERE wait_event = 'BackendTermination'"
                    " AND datname = current_database()"
                )
                return cursor.rowcount

        def watch():
            block_until(is_waited_for)
            watcher.close()

        with ThreadPoolExecutor() as threads:
            watching = threads.submit(watch)
            disconnect_others(connection)
            watching.result()  # fails where the next was disconnected before *other* had ended
