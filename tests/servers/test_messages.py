"""What clients of PgBouncer read, and what Daphne logs, word for word."""

import re
import subprocess

from tests.guide.conftest import run_python
from tests.servers import pgbouncer
from tests.servers.harness import address


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
