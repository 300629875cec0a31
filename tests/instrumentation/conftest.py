"""Fixtures of the tests with real tools, which patch a whole process: each test has its own."""

import json
import os
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from django.db import connections

from tests import settings as test_settings
from tests.core.support import run_python
from tests.servers.harness import address


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run on another database."""
    if test_settings.CHOICE != "postgresql" and not session.config.option.collectonly:
        raise pytest.UsageError(
            "tests/instrumentation traces psycopg: set ORMBRIDGE_TEST_DATABASE=postgresql"
        )


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """Return the name of a database for the processes of this run."""
    name = f"ormbridge_instrumentation_{os.getpid()}"
    with psycopg.connect(**address("postgres"), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield name
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def django_db_setup(database: str) -> None:
    """Let whoever asks Django for the database, as the recorder does, have that one."""
    connections.settings["default"]["NAME"] = database


@pytest.fixture(params=["0", "60"], ids=["CONN_MAX_AGE=0", "CONN_MAX_AGE=60"])
def age(request: pytest.FixtureRequest) -> str:
    """Return how long connections live."""
    return request.param


@pytest.fixture
def run(database: str) -> Callable[..., Any]:
    """Run a script of several parts in a process of its own; return what it prints, JSON."""

    def run(*parts: str, **environment: str) -> Any:
        source = "".join(map(textwrap.dedent, parts))
        done = run_python(source, INSTRUMENTATION_DATABASE=database, **environment)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
