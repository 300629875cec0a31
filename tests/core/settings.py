"""Settings of a project on SQLite.

Two runs at once do not meet: the name of the test database carries the number of the process, and
that of the worker where pytest-xdist runs several. A process that a test starts inherits that name
through the environment.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

# Set here for the processes that tests start; conftest.py makes and removes the directory.
RUN_NAME = os.environ.setdefault("ORMBRIDGE_TEST_RUN", f"ormbridge-{os.getpid()}")
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if not RUN_NAME.endswith(WORKER):
    # What a worker of pytest-xdist inherited is the name of the whole run.
    RUN_NAME = os.environ["ORMBRIDGE_TEST_RUN"] = f"{RUN_NAME}-{WORKER}"
RUN_DIRECTORY = Path(tempfile.gettempdir(), RUN_NAME)


def sqlite() -> dict[str, Any]:
    """Return the settings of a SQLite database in a file.

    Django's own default is a database in memory with a cache that all threads share. There a
    reader and a writer lock each other's tables and nothing waits; a file is also what a
    project has.
    """
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": RUN_DIRECTORY / "project.sqlite3",
        "OPTIONS": {
            # Take the write lock when a transaction begins, and wait for it (seconds): threads
            # that first read and then write would otherwise fail with "database is locked".
            "transaction_mode": "IMMEDIATE",
            "timeout": 30,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF;",
        },
        "TEST": {"NAME": RUN_DIRECTORY / "test.sqlite3"},
    }


def databases(database: dict[str, Any]) -> dict[str, Any]:
    """Return what stands in DATABASES for *database*.

    Connections persist, as in a project that uses the pool. A test that needs another value
    changes it with the `connection_settings` fixture.
    """
    return {
        "default": {**database, "CONN_MAX_AGE": 60},
        # A second way to the same test database.
        "other": {**database, "CONN_MAX_AGE": 60, "TEST": {"MIRROR": "default"}},
    }


DATABASES = databases(sqlite())
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # fast; nothing is secret here
SECRET_KEY = "for tests only"
USE_TZ = True
