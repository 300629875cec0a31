"""A real replica of PostgreSQL, behind the router of guide/scaling."""

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

REPLICATE = """
    import psycopg
    primary = psycopg.connect(port={primary}, **address, autocommit=True)
    replica = psycopg.connect(port={replica}, **address, autocommit=True)
    with primary, replica:
        written, = primary.execute("SELECT pg_current_wal_lsn()").fetchone()
        replica.execute("SELECT pg_wal_replay_resume()")
        replayed = "SELECT pg_last_wal_replay_lsn() >= %s"
        while not replica.execute(replayed, [written]).fetchone()[0]:
            pass
        replica.execute("SELECT pg_wal_replay_pause()")
        while replica.execute("SELECT pg_get_wal_replay_pause_state()").fetchone() != ("paused",):
            pass
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


def test_replicas_of_postgresql(ports):
    """The router of the page does on PostgreSQL what it prints there: the replica is behind."""
    primary, replica = ports
    source = example_source("scaling/replicas")
    options = "'USER': 'postgres', 'HOST': '127.0.0.1', 'PORT'"
    for name, port in (("primary", primary), ("replica", replica)):
        before = f'"ENGINE": "django.db.backends.sqlite3", "NAME": "{name}.sqlite3"'
        assert before in source
        engine = f'"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", {options}: {port}'
        source = source.replace(before, engine)
    before = '    shutil.copy("primary.sqlite3", "replica.sqlite3")\n'
    assert before in source
    same = 'address = dict(host="127.0.0.1", user="postgres", dbname="postgres")\n'
    body = REPLICATE.format(primary=primary, replica=replica)
    source = source.replace(before, f"    {same}{body}")
    with tempfile.TemporaryDirectory() as place:
        finished = run_python(Path(place), source, stderr=subprocess.STDOUT)
    assert finished.returncode == 0, finished.stdout
    assert [line.partition(": ")[2].strip() for line in finished.stdout.splitlines()] == [
        "['ada']",
        "['ada']",
        "[]",
        "['ada']",
    ]
