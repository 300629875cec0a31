"""A real replica of PostgreSQL, behind the router of howto/routers."""

import contextlib
import select
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from django.db import connections

from examples.deployment.stack import parts
from examples.deployment.stack.ports import HOST, free_ports
from examples.deployment.stack.running import Stack, place_for_all
from tests.core.gate import GUARD
from tests.guide.conftest import run_python
from tests.support.examples import example_source
from tests.support.messages import wordings

REPLAYED = "SELECT pg_last_wal_replay_lsn() >= %s"
SCRIPT = """
import asyncio
import contextvars

import django
import psycopg
from django.conf import settings
from django.core.management import call_command

address = {{"HOST": "127.0.0.1", "USER": "postgres", "NAME": "postgres"}}
engine = {{"ENGINE": "django.db.backends.postgresql", **address}}
settings.configure(
    DATABASES={{
        "default": {{**engine, "PORT": {primary}}},
        "replica": {{**engine, "PORT": {replica}}},
    }},
    DATABASE_ROUTERS=["replica.ReplicaRouter"],
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()
call_command("migrate", verbosity=0)

from django.contrib.auth.models import User


def connect(port):
    address = {{"host": "127.0.0.1", "user": "postgres", "dbname": "postgres"}}
    return psycopg.connect(**address, port=port, autocommit=True)


def catch_up():
    with connect({primary}) as primary, connect({replica}) as replica:
        (written,) = primary.execute("SELECT pg_current_wal_lsn()").fetchone()
        replica.execute("SELECT pg_wal_replay_resume()")
        replayed = "SELECT pg_last_wal_replay_lsn() >= %s"
        while not replica.execute(replayed, [written]).fetchone()[0]:
            pass
        replica.execute("SELECT pg_wal_replay_pause()")
        state = "SELECT pg_get_wal_replay_pause_state()"
        while replica.execute(state).fetchone() != ("paused",):
            pass


async def names():
    return [user.username async for user in User.objects.all()]


async def another():
    return await asyncio.create_task(names(), context=contextvars.Context())


async def main():
    catch_up()
    await User.objects.acreate(username="ada")
    print("who wrote:", await names())
    print("another request:", await another())
    catch_up()
    print("another, later:", await another())


asyncio.run(main())
"""


@pytest.fixture(scope="module")
def ports():
    """Return the ports of a PostgreSQL and of its replica."""
    ports = free_ports()
    who = parts.account()
    with contextlib.ExitStack() as stack:
        servers = Stack(ports)
        place = servers.place = Path(stack.enter_context(place_for_all()))
        servers.start(stack, "postgresql", parts.postgresql(place, ports), **who)
        servers.wait_for(servers.accepts)
        # pg_basebackup is where postgres is.
        program = Path(parts.find("postgres")).resolve().with_name("pg_basebackup")
        address = ["--host", HOST, "--port", str(ports["postgresql"]), "--username", "postgres"]
        copy = ["--pgdata", place / "replica", "--write-recovery-conf", "--checkpoint=fast"]
        subprocess.run([program, *address, *copy], check=True, cwd=place, **who)
        # The part named app is the replica here.
        options = {
            "listen_addresses": HOST,
            "port": ports["app"],
            "unix_socket_directories": "",
            # Waits for nobody who is in the way of what the primary did.
            "max_standby_streaming_delay": 0,
        }
        command = [parts.find("postgres"), "-D", place / "replica"]
        command += [f"--{key}={value}" for key, value in options.items()]
        servers.start(stack, "app", command, **who)
        servers.wait_for(lambda: servers.accepts("app"))
        yield ports["postgresql"], ports["app"]


def address(port):
    return {"host": HOST, "user": "postgres", "dbname": "postgres", "port": port}


def replay(primary, port):
    """Wait until the replica at *port* has all that was written so far."""
    (written,) = primary.execute("SELECT pg_current_wal_lsn()").fetchone()
    with psycopg.connect(**address(port), autocommit=True) as replica:
        replica.execute("SELECT pg_wal_replay_resume()")
        while not replica.execute(REPLAYED, [written]).fetchone()[0]:
            pass


def test_replica_refuses_writes(ports):
    """What is written through a replica is an error."""
    _, replica = ports
    with (
        psycopg.connect(**address(replica)) as connection,
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="read-only transaction"),
    ):
        connection.execute("CREATE TABLE refused (id int)")


def test_hosts_of_which_one_may_write(ports):
    """Of several hosts, Django connects to the one that may write if it is told to."""
    primary, replica = ports
    own = connections["default"].copy()
    both = {"HOST": f"{HOST},{HOST}", "PORT": f"{replica},{primary}", "NAME": "postgres"}
    own.settings_dict |= {**both, "USER": "postgres", "PASSWORD": ""}
    for options, port in (({}, replica), ({"target_session_attrs": "read-write"}, primary)):
        own.settings_dict["OPTIONS"] = options
        with own.get_new_connection(own.get_connection_params()) as connection:
            assert connection.info.port == port


# What the primary does, and what the replica then says.
IN_THE_WAY = {
    "migration": (
        "ALTER TABLE seats ADD COLUMN taken bool",
        "User was holding a relation lock for too long.",
    ),
    "vacuum": (
        "DELETE FROM seats; VACUUM (TRUNCATE false) seats",
        "User query might have needed to see row versions that must be removed.",
    ),
}


@pytest.mark.parametrize("is_idle", [True, False], ids=["idle", "running"])
@pytest.mark.parametrize("what", IN_THE_WAY)
def test_replica_ends_what_is_in_the_way(ports, what, is_idle):
    """A replica stops queries and open transactions that are in the way of the primary's work."""
    primary, replica = ports
    statements, detail = IN_THE_WAY[what]
    with (
        psycopg.connect(**address(primary), autocommit=True) as writes,
        psycopg.connect(**address(replica)) as reads,
        psycopg.connect(**address(replica), autocommit=True) as watches,
        ThreadPoolExecutor() as other,
    ):
        writes.execute("DROP TABLE IF EXISTS seats")
        writes.execute("CREATE TABLE seats AS SELECT generate_series(1, 10) AS id")
        replay(writes, replica)

        def work():
            running = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            while not is_idle and watches.execute(running).fetchone() == (0,):
                pass
            for statement in statements.split("; "):
                writes.execute(statement)

        reads.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reads.execute("SELECT * FROM seats")
        done = other.submit(work)
        if is_idle:
            select.select([reads], [], [], GUARD)  # until the server says that it is over
        with pytest.raises(psycopg.errors.SerializationFailure) as ended:
            reads.execute("SELECT pg_sleep(%s)", [GUARD])
        done.result(GUARD)
    first, second, *_ = str(ended.value).splitlines()
    assert second == f"DETAIL:  {detail}"
    said = "terminating connection" if is_idle else "canceling statement"
    assert first == f"{said} due to conflict with recovery"
    assert f"psycopg.errors.SerializationFailure: {first} DETAIL: {detail}" in wordings()


def test_replica_is_behind(ports):
    """Who wrote reads it from the primary; everybody else when the replica has caught up."""
    primary, replica = ports
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "replica.py").write_text(example_source("routers/replica"), encoding="utf-8")
        script = SCRIPT.format(primary=primary, replica=replica)
        finished = run_python(place, script, stderr=subprocess.STDOUT)
    assert finished.returncode == 0, finished.stdout
    assert finished.stdout.splitlines() == [
        "who wrote: ['ada']",
        "another request: []",
        "another, later: ['ada']",
    ]
