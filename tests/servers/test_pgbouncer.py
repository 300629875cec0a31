"""Behind PgBouncer a statement is cancelled too, and its connection is not trusted any more."""

import asyncio
import contextvars
import os
import shutil
import socket
import subprocess
import time

import psycopg
import pytest
from django.contrib.auth.models import Group
from django.db import connection, connections

from ormbridge import atomic, database_sync_to_async, pinned, stats
from tests.gate import GUARD
from tests.servers.harness import address, until

CONFIGURATION = """
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = {mode}
ignore_startup_parameters = extra_float_digits, options
"""


@pytest.fixture(params=["session", "transaction"])
def pgbouncer(request, database, django_db_setup, django_db_blocker, tmp_path, monkeypatch):
    """Have Django's connections go through PgBouncer, and leave the rows there as they are."""
    program = shutil.which("pgbouncer", path=os.environ["PATH"] + ":/usr/sbin")
    assert program, "PgBouncer is missing: apt-get install pgbouncer"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = address(database)
    through = {**server, "host": "127.0.0.1", "port": port}
    path, users = tmp_path / "pgbouncer.ini", tmp_path / "users.txt"
    users.write_text(f'"{server["user"]}" "{server["password"]}"\n')
    path.write_text(
        CONFIGURATION.format(
            host=server["host"],
            port=server["port"],
            listen=port,
            users=users,
            mode=request.param,
        )
    )
    command = [program, str(path)]
    if os.geteuid() == 0:  # it refuses to run as root
        for each in (path, users, *list(path.parents)[:3]):
            each.chmod(0o755)
        command[1:1] = ["-u", "postgres"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        give_up = time.monotonic() + GUARD
        while process.poll() is None and time.monotonic() < give_up:
            try:
                psycopg.connect(**through, connect_timeout=5).close()
                break
            except psycopg.OperationalError:
                time.sleep(0.02)
        else:
            process.kill()
            raise AssertionError(process.communicate()[0].decode())
        settings = connections.settings["default"]
        monkeypatch.setitem(settings, "HOST", "127.0.0.1")
        monkeypatch.setitem(settings, "PORT", str(port))
        monkeypatch.setitem(settings, "DISABLE_SERVER_SIDE_CURSORS", True)
        with django_db_blocker.unblock():
            yield request.param
    finally:
        process.terminate()
        process.communicate(timeout=GUARD)


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
