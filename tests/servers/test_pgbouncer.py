"""Behind PgBouncer a statement is cancelled too, and its connection is not trusted any more."""

import asyncio
import contextlib
import contextvars
import gc
import os
import re
import subprocess

import pytest
from django.contrib.auth.models import Group, Permission
from django.db import ProgrammingError, connection, connections
from psycopg.errors import InvalidCursorName

from ormbridge import atomic, database_sync_to_async, pinned, stats
from tests.core.gate import GUARD
from tests.servers.harness import ROOT, address, until
from tests.servers.pgbouncer import PROGRAM, run_example, running
from tests.tenants.runs import new_database, scenarios

RESET_TENANT = "examples.connections.reset_tenants.reset_tenant"


@pytest.fixture(params=["session", "transaction"])
def pgbouncer(request, database, django_db_setup, django_db_blocker, tmp_path, monkeypatch):
    """Have Django's connections go through PgBouncer, and leave the rows there as they are."""
    with running(request.param, 20, database, tmp_path) as port:
        settings = connections.settings["default"]
        monkeypatch.setitem(settings, "HOST", "127.0.0.1")
        monkeypatch.setitem(settings, "PORT", port)
        monkeypatch.setitem(settings, "DISABLE_SERVER_SIDE_CURSORS", True)
        with django_db_blocker.unblock():
            yield request.param


@pytest.fixture
def one_for_all(database, tmp_path):
    """Return how to reach a PgBouncer whose clients share one connection, in transaction mode."""
    with running("transaction", 1, database, tmp_path) as port:
        server = address(database)
        yield {
            "PGHOST": "127.0.0.1",
            "PGPORT": port,
            "PGUSER": server["user"],
            "PGPASSWORD": server["password"],
        }


def test_what_set_sets_is_of_the_last_one(one_for_all, tmp_path, recorded):
    """In transaction mode clients share what SET sets, in pinned() too: the last one's."""
    output = run_example("connections/pgbouncer_before", tmp_path, **one_for_all)
    recorded("connections/pgbouncer_before", output)


def test_what_set_local_sets_is_of_its_transaction(one_for_all, tmp_path, recorded):
    """In transaction mode everybody in an atomic() sees what they set with SET LOCAL."""
    output = run_example("connections/pgbouncer_after", tmp_path, **one_for_all)
    recorded("connections/pgbouncer_after", output)


def test_set_local_ends_with_its_transaction(one_for_all, tmp_path):
    """Outside of a transaction SET LOCAL is forgotten at once."""
    changes = [("'app.tenant')", "'app.tenant', true)"), ("async with atomic():", "if True:")]
    output = run_example("connections/pgbouncer_after", tmp_path, changes, **one_for_all)
    assert output == "0 of 20 reports see their own tenant\n"


NEIGHBOUR = """
async def neighbour():
    # Not in the block: a call of its own, after which RESET runs on another worker.
    await asyncio.create_task(get_tenant(), context=contextvars.Context())
    while stats().idle == 0:
        await asyncio.sleep(0.001)  # without a rest, twenty of these keep the lock from the worker


async def report"""


def test_reset_clears_what_another_has_set(one_for_all, tmp_path):
    """In transaction mode RESET of one client clears a session that another one uses."""
    changes = [
        ("import asyncio", "import asyncio\nimport contextvars"),
        ("'app.tenant')", "'app.tenant', true)"),
        ("import database", "import stats, database"),
        (
            '"MAX_THREADS": 20',
            '"MAX_THREADS": 21, "RESET": "examples.connections.reset.reset_session"',
        ),
        ("async def report", NEIGHBOUR),
        ("it.wait()", "it.wait()\n        await neighbour()"),
    ]
    environment = {**one_for_all, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    output = run_example("connections/pgbouncer_before", tmp_path, changes, **environment)
    assert output == "0 of 20 reports see their own tenant\n"


def test_tenants_are_safe_in_transactions_only(one_for_all):
    """In transaction mode django-tenants finds its tenant in atomic(), and anybody's outside."""
    with new_database() as name:
        # What its server session is left with is of the last one, whatever RESET says.
        seen = scenarios(name, "behind a pooler", environment=one_for_all, RESET=RESET_TENANT)
    assert seen["inside"] == {"own": 144}
    assert seen["outside"]["foreign"] > 0


def raw():
    Group.objects.exists()
    return connection.connection


def wait():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(600)")


def sleeping(outside):
    return outside.value(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event = 'PgSleep'"
    )


async def test_stopped_connection_is_discarded(pgbouncer, pool_settings, outside, caplog):
    """The statement stops behind PgBouncer, and the connection is not used again."""
    pool_settings(MAX_THREADS=1)
    before = await database_sync_to_async(raw)()
    call = asyncio.create_task(database_sync_to_async(wait)())
    await until(lambda: sleeping(outside))
    call.cancel()
    assert await asyncio.wait_for(database_sync_to_async(raw)(), GUARD) is not before
    assert sleeping(outside) == 0
    assert before.closed
    assert stats().discarded == 1
    assert caplog.messages == [
        "connection 'default' discarded: its statement was cancelled through a pooler, which may "
        "do so later"
    ]


async def test_stopped_transaction_is_rolled_back_first(pgbouncer, pool_settings, outside):
    """A transaction keeps its connection until it is rolled back; the next call has another."""
    pool_settings(MAX_THREADS=1)
    before = await database_sync_to_async(raw)()

    async def transact():
        async with atomic():
            await Group.objects.acreate(name="rolled back")
            await database_sync_to_async(wait)()

    task = asyncio.create_task(transact())
    await until(lambda: sleeping(outside))
    task.cancel()
    await asyncio.wait([task], timeout=GUARD)
    assert task.cancelled()
    assert await asyncio.wait_for(database_sync_to_async(raw)(), GUARD) is not before
    assert not outside.has_group("rolled back")
    assert stats().discarded == 1


@database_sync_to_async
def ask(statement):
    """Return the one value that *statement* finds."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]


GET = "SELECT current_setting('app.user', true)"


async def elsewhere(coroutine):
    """Run *coroutine* as somebody who shares nothing with the caller, such as another request."""
    return await asyncio.create_task(coroutine, context=contextvars.Context())


async def test_state_of_the_session_belongs_to_nobody(pgbouncer):
    """Where PgBouncer pools transactions, two who have pinned a connection each share a session."""

    async def other():
        async with pinned():
            before = await ask(GET)
            await ask("SELECT set_config('app.user', 'bob', false)")
            return before

    async with pinned():
        await ask("SELECT set_config('app.user', 'ada', false)")
        seen_by_other = await elsewhere(other())
        seen = await ask(GET)
    expected = {"session": (None, "ada"), "transaction": ("ada", "bob")}[pgbouncer]
    assert (seen_by_other, seen) == expected


async def test_set_local_holds_in_its_block(pgbouncer):
    """What is set for a transaction holds to its end, and nobody else sees it."""

    async def other():
        async with atomic():
            before = await ask(GET)
            await ask("SELECT set_config('app.user', 'bob', true)")
            return before, await ask(GET)

    async with atomic():
        await ask("SELECT set_config('app.user', 'ada', true)")
        seen_by_other = await elsewhere(other())
        seen = await ask(GET)
    assert (seen_by_other, seen) == ((None, "bob"), "ada")
    assert not await ask(GET)


@contextlib.asynccontextmanager
async def session_taken():
    """Have somebody else in a transaction: in transaction mode, in the session last used."""
    begun, end = asyncio.Event(), asyncio.Event()

    async def transact():
        async with atomic():
            await ask("SELECT 0")
            begun.set()
            await end.wait()

    task = asyncio.create_task(transact(), context=contextvars.Context())
    await asyncio.wait_for(begun.wait(), GUARD)
    try:
        yield
    finally:
        end.set()
        await task


def version():
    """Return the version of PgBouncer, as (1, 18)."""
    said = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    return tuple(map(int, re.search(r"(\d+)\.(\d+)", said.stdout).groups()))


async def test_prepared_statements(pgbouncer, monkeypatch):
    """Statements that clients prepare under one name meet in one session."""
    options = {"server_side_binding": True, "prepare_threshold": 0}
    monkeypatch.setitem(connections.settings["default"], "OPTIONS", options)
    async with pinned():
        await ask("SELECT 1")
        if pgbouncer == "session" or version() >= (1, 24):  # that one keeps them apart
            assert await elsewhere(ask("SELECT 2")) == 2
        else:
            with pytest.raises(ProgrammingError, match=r'statement "_pg3_\d+" already exists'):
                await elsewhere(ask("SELECT 2"))


@pytest.mark.filterwarnings("ignore:.*was deleted while still open:ResourceWarning")
async def test_server_side_cursors(pgbouncer, monkeypatch):
    """A server-side cursor is not known in the session in which its next rows are fetched."""
    monkeypatch.setitem(connections.settings["default"], "DISABLE_SERVER_SIDE_CURSORS", False)
    rows = aiter(Permission.objects.aiterator(chunk_size=1))
    async with pinned():
        await anext(rows)
        async with session_taken():
            if pgbouncer == "session":
                assert [row async for row in rows]
            else:
                with pytest.raises(InvalidCursorName, match=r'"_django_curs_\w+" does not exist'):
                    await anext(rows)
    del rows
    gc.collect()  # the cursor could not be closed, and says so: here, and in no later test


async def test_advisory_locks(pgbouncer):
    """A lock of a session keeps out nobody who has that session; one of a transaction does."""
    async with pinned():
        await ask("SELECT pg_advisory_lock(77)")
        got_it_too = await elsewhere(ask("SELECT pg_try_advisory_lock(77)"))
        await ask("SELECT pg_advisory_unlock_all()")
    assert got_it_too is (pgbouncer == "transaction")
    async with atomic():
        await ask("SELECT pg_advisory_xact_lock(78)")
        assert await elsewhere(ask("SELECT pg_try_advisory_xact_lock(78)")) is False


async def test_listen(pgbouncer, outside):
    """What LISTEN asked for comes to whoever has that session now."""

    @database_sync_to_async
    def heard():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        return [each.payload for each in connection.connection.notifies(timeout=0)]

    @database_sync_to_async
    def listen():
        with connection.cursor() as cursor:
            cursor.execute("LISTEN news")

    async with pinned():
        await listen()
        async with session_taken():
            outside.connection.execute("NOTIFY news, 'hello'")
            assert await heard() == (["hello"] if pgbouncer == "session" else [])
