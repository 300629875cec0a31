"""Fixtures that all tests share, those of ``tests/core`` with them, and the checks before a run."""

import importlib
import os
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

import pytest
from django.apps import apps
from django.core.asgi import get_asgi_application
from django.core.management.commands import flush
from django.db import DatabaseError, connections
from django.urls import path

from ormbridge import BridgeMiddleware
from ormbridge.core.settings import KEYS
from tests import settings as test_settings
from tests.core.conftest import (
    close_connections_of_asgiref,
    connection_settings,
    gate,
    own_pool,
    pool_settings,
    pytest_configure,
    pytest_unconfigure,
    refuse,
)
from tests.support.left import nothing_is_left

__all__ = [
    "close_connections_of_asgiref",
    "connection_settings",
    "gate",
    "own_pool",
    "pool_settings",
    "pytest_configure",
    "pytest_unconfigure",
    "refuse",
]

# The `recorded` fixture and --record; what the tests of that plugin run pytest with; and the plugin
# of the package, also where what is installed is older than this.
pytest_plugins = [
    "tests.support.recording",
    "tests.support.network",
    "pytester",
    "pytest_ormbridge",
]


if GREEN := os.environ.get("ORMBRIDGE_TEST_GREEN"):
    # As if each test had it in its settings: what runs on threads without it runs on the event
    # loop's thread.
    KEYS["GREEN"].default = "all" if GREEN == "all" else True


def pytest_report_header(config: pytest.Config) -> str:
    """Name the database in the first lines of a run."""
    return f"database: {test_settings.CHOICE}{', green' if GREEN else ''}"


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


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around what keeps the log of the test
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, None, None]:
    """See, after the last test of a module, that nothing of the package is left.

    A test that failed keeps what it had in its traceback.
    """
    yield
    getattr(item, "funcargs", {}).clear()
    if not item.session.testsfailed and (nextitem is None or nextitem.path != item.path):
        nothing_is_left(item.path)


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


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: Any) -> None:
    """Have the tables emptied fast after a test: most of its time went there.

    Django truncates them, for which PostgreSQL makes each file anew: two hundred times as long as
    to delete some rows. Then it makes content types and permissions, one question after the other;
    here they are written down as they were.
    """

    def delete_rows(style: Any, tables: list[str], **options: Any) -> list[str]:
        return [f'DELETE FROM "{table}"' for table in tables]

    def restore(verbosity: int, interactive: bool, db: str, **options: Any) -> None:
        for model, objects in made[db].items():
            model.objects.using(db).bulk_create(objects)

    models = [apps.get_model(name) for name in ("contenttypes.ContentType", "auth.Permission")]
    made = {}
    for alias in connections:
        # Those that no test of the run asks for were not made.
        with django_db_blocker.unblock(), suppress(DatabaseError):
            made[alias] = {model: list(model.objects.using(alias)) for model in models}
        connections[alias].close()  # one that no test asks for would be in the way in the end
    flush.emit_post_migrate_signal = restore  # type: ignore[attr-defined]
    for connection in connections.all() if test_settings.CHOICE == "postgresql" else ():
        connection.ops.sql_flush = delete_rows  # type: ignore[method-assign]


@pytest.fixture
def serve(settings: Any) -> Callable[..., Any]:
    """Return a function that makes an ASGI application of one view, with the middleware."""

    def make(view: Any, *middleware: str, wrapper: Any = BridgeMiddleware) -> Any:
        settings.ROOT_URLCONF = (path("", view), path("again", view))
        settings.MIDDLEWARE = middleware
        settings.ALLOWED_HOSTS = ["*"]
        return wrapper(get_asgi_application())

    return make
