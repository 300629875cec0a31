"""Run the scenarios in a process of their own, on a database of theirs."""

import importlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests import settings as test_settings
from tests.core.support import run_python


@contextmanager
def new_database() -> Iterator[str]:
    """Make a database with eight tenants; drop it when the block ends."""
    psycopg = importlib.import_module("psycopg")
    default = test_settings.postgresql()
    server = {name.lower(): default[name] for name in ("HOST", "PORT", "USER", "PASSWORD")}
    name = f"ormbridge_tenants_{os.getpid()}"
    with psycopg.connect(**server, dbname="postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            scenarios(name, "prepare")
            yield name
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def scenarios(
    database: str,
    what: str = "run",
    *,
    middleware: bool = False,
    age: int | None = 60,
    limit: bool = False,
    environment: dict[str, str] | None = None,
    **ormbridge: Any,
) -> Any:
    """Run *what* of the scenarios; return what users saw.

    *middleware*, *age* and *limit* are what the settings of the project say, *ormbridge* is
    ``ORMBRIDGE`` there.
    """
    run = {"database": database, "middleware": middleware, "age": age, "limit": limit}
    finished = run_python(
        f"from tests.tenants import scenarios; scenarios.main({what!r})",
        DJANGO_SETTINGS_MODULE="tests.tenants.settings",
        TENANTS=json.dumps({**run, "ormbridge": {"MAX_THREADS": 4, **ormbridge}}),
        **(environment or {}),
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout) if finished.stdout else None
