"""A real replica of PostgreSQL, behind the router of howto/routers."""

import contextlib
import subprocess
import tempfile
from pathlib import Path

import psycopg
import pytest

from examples.deployment.stack import parts
from examples.deployment.stack.ports import HOST, free_ports
from examples.deployment.stack.running import Stack, place_for_all
from tests.guide.conftest import run_python
from tests.support.examples import example_source

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
        }
        command = [parts.find("postgres"), "-D", place / "replica"]
        command += [f"--{key}={value}" for key, value in options.items()]
        servers.start(stack, "app", command, **who)
        servers.wait_for(lambda: servers.accepts("app"))
        yield ports["postgresql"], ports["app"]


def address(port):
    return {"host": HOST, "user": "postgres", "dbname": "postgres", "port": port}


def test_replica_refuses_writes(ports):
    """What is written through a replica is an error."""
    _, replica = ports
    with (
        psycopg.connect(**address(replica)) as connection,
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="read-only transaction"),
    ):
        connection.execute("CREATE TABLE refused (id int)")


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
