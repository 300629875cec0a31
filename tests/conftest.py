"""Fixtures that all tests share, and the checks before a run."""

import importlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.db import connections

from ormbridge import process
from ormbridge.worker import Worker
from tests import settings as test_settings
from tests.gate import GUARD, Gate

# The `recorded` fixture and --record; what the tests of that plugin run pytest with; and the plugin
# of the package, also where what is installed is older than this.
pytest_plugins = ["tests.recording", "tests.network", "pytester", "pytest_ormbridge"]


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory of this run's SQLite files."""
    test_settings.RUN_DIRECTORY.mkdir(exist_ok=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the directory of this run's SQLite files."""
    shutil.rmtree(test_settings.RUN_DIRECTORY, ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> str:
    """Name the database in the first lines of a run."""
    return f"database: {test_settings.CHOICE}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what a run on SQLite has not shown, and what does."""
    if test_settings.CHOICE == "sqlite":
        terminalreporter.write_line(
            "SQLite cannot show: statements stopped by a cancellation or a timeout, servers that "
            "hang or close a connection, locks on rows. `nox -s tests-postgresql` does."
        )


def pytest_sessionstart(session: pytest.Session) -> None:
    """End the run at once where the database it was asked for cannot be reached."""
    if session.config.option.collectonly:
        return
    try:
        reach_server()
    except Exception as error:  # each driver has its own tree
        pytest.exit(unreachable(error), returncode=pytest.ExitCode.USAGE_ERROR)


def reach_server() -> None:
    """Open and close a connection to the server of the chosen database.

    The test database itself does not exist yet, so that Django's own connection cannot be used.
    """
    database = connections.settings["default"]
    address = {"host": database["HOST"], "port": int(database["PORT"] or 0)}
    user = {"user": database["USER"], "password": database["PASSWORD"]}
    match test_settings.CHOICE:
        case "postgresql":
            psycopg = importlib.import_module("psycopg")
            psycopg.connect(**address, **user, dbname="postgres", connect_timeout=10).close()
        case "mariadb":
            mysqlclient = importlib.import_module("MySQLdb")
            mysqlclient.connect(**address, **user, connect_timeout=10).close()


def unreachable(error: Exception) -> str:
    """Return what to do about *error*, met on the way to the chosen database."""
    choice = test_settings.CHOICE
    database = connections.settings["default"]
    place = f"{database['USER']}@{database['HOST']}:{database['PORT']}"
    extra, variables = {
        "postgresql": ("postgres", "PGHOST, PGPORT, PGUSER and PGPASSWORD"),
        "mariadb": ("mysql", "MYSQL_HOST, MYSQL_PORT, MYSQL_USER and MYSQL_PASSWORD"),
    }[choice]
    if isinstance(error, ImportError):
        remedy = f"install the driver: pip install 'ormbridge[{extra}]'"
    else:
        remedy = f"start it (`.ci/run` shows how), or say where it is with {variables}"
    reason = " ".join(str(error).split())
    return f"database {choice!r} at {place} cannot be reached: {reason}; {remedy}"


@pytest.fixture(scope="session")
def django_db_modify_db_settings() -> None:
    """Keep pytest-django from naming the databases after pytest-xdist's workers once more.

    tests/settings.py has done so, in a way that the processes know which a test starts.
    """


@pytest.fixture
def connection_settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change settings of a database for one test: ``connection_settings(CONN_MAX_AGE=0)``.

    Connections that are opened after the change have it. ``using`` names another alias.
    """

    def change(using: str = "default", **values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setitem(connections.settings[using], name, value)

    return change


@pytest.fixture(autouse=True)
def own_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test a pool of its own, and end the threads of it."""
    monkeypatch.delenv("ASGI_THREADS", raising=False)
    yield
    process._pool = None
    for pool in process.live_pools():  # new settings may have replaced one
        pool.close(refuse=True)


@pytest.fixture(autouse=True)
def close_connections_of_asgiref() -> Iterator[None]:
    """Close what a test left open on asgiref's one thread.

    Nobody can drop a database in use, and a test without a database must not meet a connection.
    """
    yield
    SyncToAsync.single_thread_executor.submit(connections.close_all).result(GUARD)


@pytest.fixture
def pool_settings(settings: Any) -> Callable[..., None]:
    """Set ``settings.ORMBRIDGE`` for one test: ``pool_settings(MAX_THREADS=1)``."""

    def change(**values: Any) -> None:
        settings.ORMBRIDGE = values

    return change


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Return a function that blocks its thread until the test lets it go."""
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the system refuse the next threads of workers: ``refuse(2)``.

    It does what is given as ``first`` before it refuses one.
    """
    original = Worker.start
    left: list[Callable[[], object]] = []

    def start(worker: Worker) -> None:
        if left:
            left.pop()()
            raise RuntimeError("can't start new thread")
        original(worker)

    def refuse(number: int = 1, first: Callable[[], object] = list) -> None:
        left[:] = [first] * number

    monkeypatch.setattr(Worker, "start", start)
    return refuse
