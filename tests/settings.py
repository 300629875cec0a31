"""Settings of the test project.

The environment chooses the database:

``ORMBRIDGE_TEST_DATABASE``
    ``sqlite`` (the default), ``postgresql`` or ``mariadb``. The last two are looked for on
    127.0.0.1; ``PGHOST``, ``PGPORT``, ``PGUSER``, ``PGPASSWORD`` and ``MYSQL_HOST``,
    ``MYSQL_PORT``, ``MYSQL_USER``, ``MYSQL_PASSWORD`` say otherwise.

Two runs at once do not meet. The rest is that of ``tests/core/settings.py``.
"""

import os
from importlib.util import find_spec
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from tests.core.settings import *  # noqa: F403 - the same, but for the database
from tests.core.settings import INSTALLED_APPS, RUN_NAME, databases, sqlite

SERVER_NAME = "test_" + RUN_NAME.replace("-", "_")


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

DATABASES = databases(CHOICES[CHOICE]())
if find_spec("channels"):  # an extra of the package: the suite must also import without it
    INSTALLED_APPS = [*INSTALLED_APPS, "channels"]
