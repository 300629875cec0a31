"""What clients of PgBouncer read, and what servers log, word for word."""

import re
import signal
import subprocess

import pytest

from tests.guide.conftest import run_python
from tests.servers import pgbouncer
from tests.servers.client import CutError, get, opened, read_head
from tests.servers.harness import Server, address, until


def test_pgbouncer_says(database, tmp_path, monkeypatch, recorded):
    """What clients of PgBouncer read where it pools transactions, and has few sessions."""
    few = "ignore_startup_parameters = extra_float_digits\nmax_client_conn = 3\n"
    text = re.sub("ignore_startup_parameters.*\n", few, pgbouncer.CONFIGURATION)
    monkeypatch.setattr(pgbouncer, "CONFIGURATION", f"{text}query_wait_timeout = 1\n")
    server = address(database)
    with pgbouncer.running("transaction", 2, database, tmp_path) as port:
        reached = {"PGHOST": "127.0.0.1", "PGPORT": port, "PGUSER": server["user"]}
        reached["PGPASSWORD"] = server["password"]
        output = pgbouncer.run_example("messages/pgbouncer", tmp_path, **reached)
    recorded("messages/pgbouncer", output.replace(f"port {port}", "port 6432"))


DAPHNE = """
import asyncio, inspect, logging, sys
from daphne.server import Server

async def consumer():
    await asyncio.Event().wait()

async def main():
    task = asyncio.create_task(consumer())
    server = Server(None, endpoints=["tcp:0"])
    server.connections = {"socket": {"application_instance": task, "disconnected": 1}}
    server.application_checker()

logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
asyncio.run(main())
print(inspect.signature(Server).parameters["application_close_timeout"].default)
"""


def test_daphne_says(tmp_path):
    """Daphne waits ten seconds for the application when a client has left."""
    finished = run_python(tmp_path, DAPHNE, stderr=subprocess.STDOUT)
    warning, default = finished.stdout.splitlines()
    assert warning.startswith("WARNING Application instance <Task pending ")
    assert warning.endswith(" took too long to shut down and was killed.")
    assert default == "10"


@pytest.mark.parametrize("kind", ["gunicorn", "gunicorn-uvicorn"])
async def test_gunicorn_ends_a_worker_that_blocks(database, kind):
    """gunicorn ends a process whose event loop is held up for longer than its timeout."""
    with Server(kind, database, bridge=True, options="--timeout 1", MAX_THREADS=3) as server:
        with pytest.raises(CutError):
            await get(server.port, "/block")
        await until(lambda: "[CRITICAL] WORKER TIMEOUT (pid:" in server.output())


async def test_uvicorn_waits_for_a_stream(database):
    """uvicorn says that it waits, as long as somebody reads a stream of events."""
    with Server("uvicorn-asyncio", database, bridge=True, MAX_THREADS=3) as server:
        async with opened(server.port, "/events") as reader:
            await read_head(reader)
            server.process.send_signal(signal.SIGTERM)
            said = "Waiting for connections to close. (CTRL+C to force quit)"
            await until(lambda: said in server.output())
            assert server.alive()
