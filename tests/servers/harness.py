"""Real servers as processes of their own, and PostgreSQL asked from outside who is connected."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg

from examples.deployment.stack.ports import free_port
from tests.core.gate import GUARD
from tests.servers.project import LOCK

ROOT = Path(__file__).absolute().parents[2]
APPLICATION = "tests.servers.project.asgi:application"

# How people start them; {port} is filled in. On a machine that is busy with hundreds of clients the
# 5 s that Daphne gives a socket to be accepted are short.
COMMANDS = {
    "daphne": "daphne -v 0 --websocket_connect_timeout 60 -b 127.0.0.1 -p {port}",
    "uvicorn-asyncio": "uvicorn --no-access-log --loop asyncio --host 127.0.0.1 --port {port}",
    "uvicorn-uvloop": "uvicorn --no-access-log --loop uvloop --host 127.0.0.1 --port {port}",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port}",
    "granian": "granian --interface asgi --host 127.0.0.1 --port {port}",
    "gunicorn": "gunicorn --no-control-socket -k asgi -b 127.0.0.1:{port}",
    "gunicorn-uvicorn": (
        "gunicorn --no-control-socket -k uvicorn_worker.UvicornWorker -b 127.0.0.1:{port}"
    ),
}

# A shell has what it starts in the background ignore SIGINT, and servers would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def address(database: str) -> dict[str, Any]:
    """Return how psycopg finds *database* on the server of the tests."""
    return {
        "host": os.environ.get("PGHOST", "127.0.0.1"),
        "port": os.environ.get("PGPORT", "5432"),
        "user": os.environ.get("PGUSER", "postgres"),
        "password": os.environ.get("PGPASSWORD", ""),
        "dbname": database,
    }


@contextlib.contextmanager
def new_database() -> Iterator[str]:
    """Create a database with one group in it, and drop it when the block ends."""
    name = f"ormbridge_servers_{os.getpid()}"
    with psycopg.connect(**address("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            subprocess.run(
                [sys.executable, "-m", "django", "migrate", "--verbosity=0"],
                env=environment(name),
                cwd=ROOT,
                check=True,
                timeout=4 * GUARD,
            )
            with psycopg.connect(**address(name)) as connection:
                connection.execute("INSERT INTO auth_group (name) VALUES ('first')")
            yield name
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def environment(database: str, **more: str) -> dict[str, str]:
    """Return the environment of a process that uses the project on *database*."""
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.servers.project.settings",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "SERVERS_DATABASE": database,
        **more,
    }


async def until(condition: Callable[[], Any], guard: float = GUARD) -> None:
    """Wait until *condition* is true; give up after *guard* seconds."""
    async with asyncio.timeout(guard):
        while not condition():  # noqa: ASYNC110 # another process makes it true
            await asyncio.sleep(0.01)


class Server:
    """A server in a process of its own; as a context manager, from its first answer to its end.

    With *bridge* the application is wrapped in BridgeMiddleware; *options* are added to the
    command, *variables* to the environment; *settings* are `ORMBRIDGE`.
    ``name`` is what PostgreSQL shows as the name of the application.
    """

    def __init__(
        self,
        kind: str,
        database: str,
        *,
        bridge: bool,
        options: str = "",
        variables: Mapping[str, str] = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        self.kind = kind
        self.options = options
        self.variables = variables
        self.database = database
        self.bridge = bridge
        self.settings = settings
        self.port: int = free_port()
        self.name = f"{kind}:{self.port}"

    def __enter__(self) -> "Server":
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                *COMMANDS[self.kind].format(port=self.port).split(),
                *self.options.split(),
                APPLICATION,
            ],
            env=environment(
                self.database,
                SERVERS_BRIDGE=str(int(self.bridge)),
                SERVERS_NAME=self.name,
                SERVERS_ORMBRIDGE=json.dumps(self.settings),
                **self.variables,
            ),
            cwd=ROOT,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # A group of processes of its own: Ctrl-C and the last resort reach all of it.
            start_new_session=True,
        )
        # Every process that the server starts inherits the pipe: its end is the end of them all.
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._lines.extend, args=[self.process.stdout])
        self._reader.start()
        try:
            self._wait_for_an_answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()

    def _wait_for_an_answer(self) -> None:
        give_up = time.monotonic() + 2 * GUARD
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > give_up:
                raise AssertionError(f"{self.kind} does not answer: {self.output()}")
            time.sleep(0.02)

    def answers(self) -> bool:
        """Say whether a request to the server's port is answered."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=GUARD) as connection:
                request = "GET /alive HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
                connection.sendall(request.encode())
                return b" 200 " in connection.recv(100)
        except ConnectionError:
            return False

    def alive(self) -> bool:
        """Say whether anything of the server still runs: itself or a process it started."""
        return self._reader.is_alive()

    def output(self) -> str:
        """Return what the server and the application printed so far."""
        return "".join(self._lines)

    async def told(self, number: signal.Signals) -> None:
        """Send a signal to the server, and wait until it has begun to stop.

        SIGTERM goes to the server alone, as service managers do; SIGINT to all of its processes,
        as a terminal does. Granian's main process alone gets either: a worker hangs now and then
        where the terminal's SIGINT and its own SIGTERM meet, with the line and without.
        """
        idle, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            if number == signal.SIGINT and self.kind != "granian":
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
            # Hypercorn's main process goes on listening, but an idle connection is closed.
            closed = asyncio.ensure_future(idle.read())
            await until(lambda: closed.done() or not self._listens())
            closed.cancel()
        finally:
            writer.transport.abort()

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=GUARD).close()
        except ConnectionError:
            return False
        return True

    async def stopped(self) -> int:
        """Wait until every process of the server has ended; return the exit code."""
        try:
            await until(lambda: not self.alive())
        except TimeoutError:
            raise AssertionError(f"{self.kind} does not end: {self.output()}") from None
        return self.process.wait()


class Outside:
    """A connection to the database that no server knows of, to ask what the servers do there."""

    def __init__(self, database: str) -> None:
        self.connection = psycopg.connect(**address(database), autocommit=True)

    def value(self, query: str, *parameters: Any) -> Any:
        """Return the one value that *query* finds."""
        (value,) = self.connection.execute(query, parameters).fetchone()
        return value

    def sessions(self, server: Server) -> int:
        """Count the connections that *server* holds."""
        return self.value(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", server.name
        )

    def waiting(self) -> int:
        """Count the statements that wait for the lock."""
        return self.value(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event = 'advisory'"
        )

    def has_group(self, name: str) -> bool:
        """Say whether a group was inserted whose name begins with *name*."""
        query = "SELECT EXISTS (SELECT FROM auth_group WHERE starts_with(name, %s))"
        return self.value(query, name)

    @contextlib.contextmanager
    def holding(self) -> Iterator[Callable[[], None]]:
        """Hold everybody who runs `queries.wait`; what it yields lets them go before the end."""
        with contextlib.ExitStack() as stack:
            self.connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
            stack.callback(self.connection.execute, "SELECT pg_advisory_unlock(%s)", (LOCK,))
            yield stack.close

    def close(self) -> None:
        self.connection.close()


class Sampler(threading.Thread):
    """Counts the connections of *server* all the time, until the block ends.

    ``most`` is the highest number seen, ``most_sleeping`` that of `pg_sleep` at once.
    """

    def __init__(self, server: Server, pause: float = 0.0) -> None:
        super().__init__()
        self.server = server
        self.pause = pause
        self.most = self.most_sleeping = self.samples = 0
        self._end = threading.Event()

    def __enter__(self) -> "Sampler":
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        self.join()

    def run(self) -> None:
        query = (
            "SELECT count(*), count(*) FILTER (WHERE state = 'active' AND query LIKE %s)"
            " FROM pg_stat_activity WHERE application_name = %s"
        )
        with psycopg.connect(**address(self.server.database), autocommit=True) as connection:
            while not self._end.is_set():
                cursor = connection.execute(query, ("%pg_sleep%", self.server.name))
                connected, sleeping = cursor.fetchone()
                self.most = max(self.most, connected)
                self.most_sleeping = max(self.most_sleeping, sleeping)
                self.samples += 1
                self._end.wait(self.pause)
