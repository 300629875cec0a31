"""Fixtures of the tests with real servers, which need PostgreSQL: they ask it who is connected."""

from collections.abc import Iterator

import pytest
from django.db import connections

from tests import settings as test_settings
from tests.servers.harness import COMMANDS, Outside, Server, new_database

BOUND = 4


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run on another database."""
    if test_settings.CHOICE != "postgresql" and not session.config.option.collectonly:
        raise pytest.UsageError(
            "tests/servers asks PostgreSQL who is connected: set ORMBRIDGE_TEST_DATABASE=postgresql"
        )


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """Return the name of a database for the servers of this run."""
    with new_database() as name:
        yield name


@pytest.fixture(scope="session")
def django_db_setup(database: str) -> None:
    """Let whoever asks Django for the database, as the recorder does, have that one."""
    connections.settings["default"]["NAME"] = database


@pytest.fixture(scope="session", params=COMMANDS)
def server(request: pytest.FixtureRequest, database: str) -> Iterator[Server]:
    """Return each of the servers in turn, with the one line added and BOUND threads."""
    with Server(request.param, database, bridge=True, MAX_THREADS=BOUND) as server:
        yield server


@pytest.fixture
def outside(database: str) -> Iterator[Outside]:
    """Return a connection to the database that no server knows of."""
    outside = Outside(database)
    yield outside
    outside.close()
