"""Iterations that a green function leaves open: their cursors are closed where they are freed."""

import asyncio
import contextvars
import importlib

import pytest
from django.contrib.auth.models import User
from django.db import connection

from ormbridge import database_sync_to_async, pinned, stats
from tests.core.gate import GUARD

pytestmark = pytest.mark.django_db(transaction=True)

CURSORS = "SELECT count(*) FROM pg_cursors WHERE name LIKE '_django%'"


def ask(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


def green_call(function, *args):
    return database_sync_to_async(function, green=True)(*args)


def leave_open():
    rows = User.objects.iterator()
    assert next(rows)
    return rows


@pytest.fixture
def user(transactional_db):
    User.objects.create(username="user")


@pytest.mark.usefixtures("user")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_freed_on_the_loop_while_the_connection_is_used(green):
    """An error held it: the next call, which has the connection, goes on, and so do we."""
    green(MAX_THREADS=1)

    def function():
        rows = leave_open()
        raise ValueError(rows)

    async def catch():
        with pytest.raises(ValueError, match="generator"):
            await green_call(function)

    calls = asyncio.gather(catch(), green_call(ask, "SELECT 1 FROM pg_sleep(0.2)"))
    assert await asyncio.wait_for(calls, GUARD) == [None, 1]
    assert stats().idle == stats().threads


@pytest.mark.usefixtures("user")
async def test_freed_in_another_call_while_the_connection_is_used(green):
    """The call that frees it waits for the statement of the one that has the connection."""
    green(MAX_THREADS=2)
    kept = []

    def free():
        pid = ask("SELECT pg_backend_pid()")
        kept.clear()
        return pid

    async with pinned():
        kept.append(await green_call(leave_open))
        other = asyncio.create_task(green_call(free), context=contextvars.Context())
        calls = asyncio.gather(green_call(ask, "SELECT 1 FROM pg_sleep(0.2)"), other)
        assert (await asyncio.wait_for(calls, GUARD))[0] == 1
        assert await green_call(ask, CURSORS) == 0
        assert await green_call(ask, "SELECT pg_backend_pid()") != await other


async def test_connection_that_calls_share(green):
    """psycopg's lock, which greenlets of one thread wait for, does not stop the loop."""
    green(MAX_THREADS=3)
    psycopg = importlib.import_module("psycopg")

    def connect():
        names = ("host", "port", "user", "password", "dbname")
        given = connection.get_connection_params()
        address = {name: given[name] for name in names if name in given}
        return psycopg.connect(**address, autocommit=True)

    def use(number):
        return shared.execute("SELECT %s::int, pg_sleep(0.05)", [number]).fetchone()[0]

    shared = await green_call(connect)
    calls = asyncio.gather(*(green_call(use, number) for number in range(5)))
    assert await asyncio.wait_for(calls, GUARD) == [0, 1, 2, 3, 4]
    shared.close()


@pytest.mark.usefixtures("user")
async def test_freed_as_a_greenlet_is_about_to_go_on(green, monkeypatch):
    """The loop still has the thread: it closes the cursor itself, and does not wait for itself."""
    green(MAX_THREADS=1)
    runner = importlib.import_module("ormbridge.green.runner")
    set_running_loop, kept = runner._set_running_loop, []

    def set_and_free(loop):
        set_running_loop(loop)
        if loop is None:
            kept.clear()

    async with pinned():
        kept.append(await green_call(leave_open))
        await asyncio.sleep(0)  # until now, the loop has it, too
        monkeypatch.setattr(runner, "_set_running_loop", set_and_free)
        assert await asyncio.wait_for(green_call(ask, CURSORS), GUARD) == 0
