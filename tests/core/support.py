"""What tests share: who is where, waiting, processes.

It needs nothing but the core of the package, nor does what lies beside it: ``src/ormbridge/core``
and ``tests/core`` run without the rest.
"""

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django.contrib.auth.models import User
from django.db import connection

from ormbridge.core import process
from ormbridge.core.mailbox import mailbox_of
from ormbridge.core.process import stats
from ormbridge.core.worker import Worker, current
from tests.core.gate import GUARD, PROCESS_GUARD

ROOT = Path(__file__).parents[2]

CHOICE = {"sqlite3": "sqlite", "postgresql": "postgresql", "mysql": "mariadb"}[
    django_settings.DATABASES["default"]["ENGINE"].rpartition(".")[2]
]
"""The database that the settings choose."""


def thread_name() -> str:
    return current().name


async def until(condition: Callable[[], object]) -> None:
    """Wait until *condition* holds: what another thread does a moment later."""
    async with asyncio.timeout(GUARD):
        while not condition():  # noqa: ASYNC110 - another thread changes it, and sets no event
            await asyncio.sleep(0)


def leased() -> int:
    """Return how many workers are leased."""
    snapshot = stats()
    return snapshot.threads - snapshot.idle


async def no_worker_is_leased() -> None:
    await until(lambda: not leased())


def workers_end() -> None:
    """Wait for workers whose pool was closed, and which had a call to finish."""
    for thread in threading.enumerate():
        if isinstance(thread, Worker):
            thread.join(GUARD)


def set_timeout(seconds: float) -> None:
    """Have calls wait for *seconds* at most, from now on and those that wait already.

    For a test in which some call must be out of time: it sets this when all that must be in time
    is done, and sets GUARD again before what comes after. On the thread of the event loop.
    """
    settings, before = process.default_pool().settings, process.default_pool().settings.timeout
    object.__setattr__(settings, "timeout", seconds)
    watched = mailbox_of(asyncio.get_running_loop())._waiting
    for key in [each for each in watched if each[0] == before]:
        for call in list(watched[key]):
            del watched[key][call]
            call.watch(seconds, key[1])


def raw():
    """Use the database; return the driver's connection."""
    User.objects.exists()
    return connection.connection


def leave_everything():
    """Leave on Django's object what tools put there."""
    connection.ensure_connection()
    connection.force_debug_cursor = True
    connection.execute_wrappers.append(lambda execute, *args: execute(*args))
    connection.cursor().execute("SELECT 1")
    return len(connection.queries_log)


def what_is_there():
    connection.ensure_connection()
    found = [len(connection.execute_wrappers), connection.force_debug_cursor]
    return [*found, len(connection.queries_log)]


HUGE = 10**5000
"""Python refuses to write or read an int of so many digits."""

SESSIONS = {
    # Without the server's own processes, such as those of autovacuum.
    "postgresql": "SELECT pid FROM pg_stat_activity"
    " WHERE datname = current_database() AND backend_type = 'client backend'",
    "mariadb": "SELECT id FROM information_schema.processlist WHERE db = DATABASE()",
}
"""How to ask a server who is connected. SQLite has none."""


class Sampler(threading.Thread):
    """Asks the server again and again, from outside the pool, who has connected since it started.

    Who was there before may have said goodbye, and be slow to leave.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stop = threading.Event()
        self.most = self.samples = 0
        self._began = threading.Event()

    def start(self) -> None:
        """Start, and see who is there."""
        super().start()
        assert self._began.wait(GUARD)

    def run(self) -> None:
        with connection.cursor() as cursor:
            before = self._ask(cursor)
            self._began.set()
            while not self.stop.is_set():
                seen = self._ask(cursor)
                before &= seen  # a number may be given again
                self.most = max(self.most, len(seen - before))
                self.samples += 1
        connection.close()

    def _ask(self, cursor: Any) -> set[int]:
        cursor.execute(SESSIONS[CHOICE])
        return {number for (number,) in cursor.fetchall()}


def run_python(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run *source* with the project on its path, and with *environment* on top of the own one."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=PROCESS_GUARD,
    )


SETUP = """
import asyncio, django, os, sys, threading, time
django.setup()
from django.conf import settings
from django.db import connection, connections
from ormbridge.core.bridge import database_sync_to_async
from ormbridge.core.errors import PoolClosed
from ormbridge.core.process import default_pool, stats
connections.settings["default"]["NAME"] = connections.settings["default"]["TEST"]["NAME"]

"""


def run(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run *source* on the test database of this run, whose settings the environment names."""
    return run_python(SETUP + source, **environment)
