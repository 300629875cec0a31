"""What clients of PgBouncer read, word for word."""

import re

from tests.servers import test_pgbouncer as pgbouncer
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
