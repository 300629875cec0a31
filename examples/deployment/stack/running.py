"""Start all parts, one after the other, and end them in the opposite order."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import psycopg

from . import parts
from .ports import HERE, HOST, free_ports

GUARD = 60
"""Seconds after which a part that does not start or end is given up."""


class Stack:
    """All parts, from their first answer to their end.

    With *server* and *processes* the project is served; *threads* is the bound of a process.
    ``ports`` has the port of each part, ``processes`` what was started for it.
    """

    def __init__(self, ports, server="gunicorn", processes=2, threads=10):
        self.ports = ports
        self.server = server
        self.count = processes
        self.threads = threads
        self.processes = {}
        self.logs = {}

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            # The programs that run as another user must get there.
            self.place = Path(stack.enter_context(place_for_all()))
            who = parts.account()
            self.start(stack, "postgresql", parts.postgresql(self.place, self.ports), **who)
            self.start(stack, "redis", parts.redis(self.place, self.ports), **who)
            self.make_database()
            self.start(stack, "pgbouncer", parts.pgbouncer(self.place, self.ports), **who)
            self.serve(stack)
            self.start(stack, "nginx", parts.nginx(self.place, self.ports), **who)
            self.wait_for(lambda: len(self.servers()) == self.count and self.answers())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info):
        return self._stack.__exit__(*exc_info)

    def serve(self, stack):
        """Start the server."""
        command = parts.app(self.server, self.count, self.ports)
        env = parts.environment(self.ports, ASGI_THREADS=str(self.threads))
        self.start(stack, "app", command, env=env, cwd=HERE)

    def start(self, stack, name, command, **how):
        """Start the part *name*, and wait until it listens."""
        log = self.logs[name] = self.place / f"{name}.log"
        # A group of processes of its own, so that Ctrl-C reaches none before its turn.
        how = {"cwd": self.place, "stdin": subprocess.DEVNULL, "start_new_session": True, **how}
        with log.open("w") as output:
            process = subprocess.Popen(
                list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, **how
            )
        self.processes[name] = process
        stack.callback(self.stop, name)
        self.wait_for(lambda: listens(self.ports[name]) or process.poll() is not None)
        if process.poll() is not None:
            raise SystemExit(f"{name} did not start:\n{log.read_text()}")

    def stop(self, name):
        """End the part *name* as its service manager would; the last resort is SIGKILL."""
        process = self.processes.pop(name, None)
        if process is None:  # it was stopped before
            return
        # PostgreSQL waits for its clients at SIGTERM, and asks them to go at SIGINT.
        number = signal.SIGINT if name in ("postgresql", "pgbouncer") else signal.SIGTERM
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.send_signal(number)
            process.wait(GUARD)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def make_database(self):
        """Make the database of the project: at PostgreSQL itself, without PgBouncer."""
        self.wait_for(self.accepts)
        self.ask("postgres", "CREATE DATABASE mysite", part="postgresql")
        subprocess.run(
            [sys.executable, "-m", "django", "migrate", "--verbosity=0"],
            env=parts.environment(self.ports, DATABASE_PORT=str(self.ports["postgresql"])),
            cwd=HERE,
            check=True,
        )

    def wait_for(self, condition):
        """Wait until *condition* is true."""
        give_up = time.monotonic() + GUARD
        while not condition():
            if time.monotonic() > give_up:
                raise SystemExit("\n".join(log.read_text() for log in self.logs.values()))
            time.sleep(0.02)

    def accepts(self, part="postgresql"):
        """Say whether PostgreSQL takes connections: it listens a moment before it does."""
        with contextlib.suppress(psycopg.OperationalError):
            return bool(self.ask("postgres", "SELECT 1", part))

    def answers(self, part="nginx"):
        """Say whether a request to *part* is answered."""
        url = f"http://{HOST}:{self.ports[part]}/"
        with contextlib.suppress(OSError), urllib.request.urlopen(url) as answer:
            return answer.status == 200

    def ask(self, database, query, part="postgresql"):
        """Return the rows of *query*, asked of PostgreSQL or of PgBouncer's own console."""
        address = {"host": HOST, "port": self.ports[part], "user": "postgres", "dbname": database}
        with psycopg.connect(**address, autocommit=True, prepare_threshold=None) as connection:
            # The console of PgBouncer knows the simplest form of a query only.
            cursor = psycopg.ClientCursor(connection).execute(query)
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor] if names else []

    def connections(self):
        """Count the connections to PgBouncer, and those that PostgreSQL has of it."""
        pools = self.ask("pgbouncer", "SHOW POOLS", part="pgbouncer")
        ours = [pool for pool in pools if pool["database"] == "mysite"]
        (at_postgresql,) = self.ask(
            "postgres", "SELECT count(*) FROM pg_stat_activity WHERE datname = 'mysite'"
        )
        at_pgbouncer = sum(pool["cl_active"] + pool["cl_waiting"] for pool in ours)
        return {"pgbouncer": at_pgbouncer, "postgresql": at_postgresql["count"]}

    def servers(self, part="app"):
        """Return the ids of the processes that serve: the children of the one that was started."""
        pid = self.processes[part].pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if serves(int(child))]

    def renew(self):
        """Have the server replace its processes, one after the other."""
        self.processes["app"].send_signal(signal.SIGHUP)

    def switch(self):
        """Start the server anew on another port, send nginx there, and end the old one.

        The old one is ended when nobody asks it any more: nginx has old processes of its own for
        the requests that it has begun, and they end with these.
        """
        self.processes["old"] = self.processes.pop("app")
        self._stack.callback(self.stop, "old")
        self.ports["app"] = free_ports()["app"]
        self.serve(self._stack)
        self.wait_for(lambda: len(self.servers()) == self.count and self.answers("app"))
        before = set(self.servers("nginx"))
        parts.nginx(self.place, self.ports)
        self.processes["nginx"].send_signal(signal.SIGHUP)
        self.wait_for(lambda: not before & set(self.servers("nginx")))
        self.stop("old")

    @property
    def url(self):
        """Where nginx answers."""
        return f"http://{HOST}:{self.ports['nginx']}/"


def serves(pid):
    """Say whether the process *pid* is there still, and none of multiprocessing's own."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return command != b"" and b"resource_tracker" not in command


def listens(port):
    """Say whether something listens on *port*."""
    try:
        socket.create_connection((HOST, port), timeout=GUARD).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def place_for_all():
    """Make a directory that PostgreSQL's user may write to, and remove it at the end."""
    with tempfile.TemporaryDirectory(prefix="ormbridge-stack-") as place:
        if "user" in parts.account():
            shutil.chown(place, **{key: parts.account()[key] for key in ("user", "group")})
        yield place
