"""Settings of the test project.

The environment chooses the database:

``ORMBRIDGE_TEST_DATABASE``
    ``sqlite`` (the default), ``postgresql`` or ``mariadb``. The last two are looked for on
    127.0.0.1; ``PGHOST``, ``PGPORT``, ``PGUSER``, ``PGPASSWORD`` and ``MYSQL_HOST``,
    ``MYSQL_PORT``, ``MYSQL_USER``, ``MYSQL_PASSWORD`` say otherwise.

Two runs at once do not meet: the name of the test database carries the number of the process, and
that of the worker where pytest-xdist runs several. A process that a test starts inherits that name
through the environment.
"""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured

# Set here for the processes that tests start; tests/conftest.py makes and removes the directory.
RUN_NAME = os.environ.setdefault("ORMBRIDGE_TEST_RUN", f"ormbridge-{os.getpid()}")
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if not RUN_NAME.endswith(WORKER):
    # What a worker of pytest-xdist inherited is the name of the whole run.
    RUN_NAME = os.environ["ORMBRIDGE_TEST_RUN"] = f"{RUN_NAME}-{WORKER}"
RUN_DIRECTORY = Path(tempfile.gettempdir(), RUN_NAME)
SERVER_NAME = "test_" + RUN_NAME.replace("-", "_")


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


def postgresql() -> dict[str, Any]:
    """Return the settings of a PostgreSQL database, read with psycopg."""
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "ormbridge",
        "HOST": os.environ.get("PGHOST", "127.0.0.1"),
        "PORT": os.environ.get("PGPORT", "5432"),
        "USER": os.environ.get("PGUSER", "postgres"),
        "PASSWORD": os.environ.get("PGPASSWORD", ""),
        # Nothing here has to survive a crash of the server.
        "OPTIONS": {"options": "-c synchronous_commit=off"},
        "TEST": {"NAME": SERVER_NAME},
    }


def mariadb() -> dict[str, Any]:
    """Return the settings of a MariaDB database, read with mysqlclient."""
    return {
        "ENGINE": "django.db.backends.mysql",
        "NAME": "ormbridge",
        "HOST": os.environ.get("MYSQL_HOST", "127.0.0.1"),
        "PORT": os.environ.get("MYSQL_PORT", "3306"),
        "USER": os.environ.get("MYSQL_USER", "root"),
        "PASSWORD": os.environ.get("MYSQL_PASSWORD", ""),
        "OPTIONS": {"charset": "utf8mb4"},
        "TEST": {"NAME": SERVER_NAME, "CHARSET": "utf8mb4"},
    }


CHOICES = {"sqlite": sqlite, "postgresql": postgresql, "mariadb": mariadb}
CHOICE = os.environ.get("ORMBRIDGE_TEST_DATABASE") or "sqlite"
if CHOICE not in CHOICES:
    raise ImproperlyConfigured(
        f"ORMBRIDGE_TEST_DATABASE={CHOICE!r}: no such database; use one of {', '.join(CHOICES)}"
    )

# Connections persist, as in a project that uses the pool. A test that needs another value
# changes it with the `connection_settings` fixture.
DATABASES = {
    "default": {**CHOICES[CHOICE](), "CONN_MAX_AGE": 60},
    # A second way to the same test database.
    "other": {**CHOICES[CHOICE](), "CONN_MAX_AGE": 60, "TEST": {"MIRROR": "default"}},
}

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    # An extra of the package: the suite must also import without it.
    *(["channels"] if find_spec("channels") else []),
]
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # fast; nothing is secret here
SECRET_KEY = "for tests only"
USE_TZ = True
