"""What the tests of the checks share."""

import sys
import types

import pytest
from django.core.checks import run_checks
from django.db.utils import ConnectionHandler

from ormbridge import checks

# The checks read settings only: no driver is needed to talk about a database.
POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "CONN_MAX_AGE": 60}


SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": "project.sqlite3"}


@pytest.fixture
def check(monkeypatch):
    """Return a function that tells what the checks say of one database's settings."""

    def check(**database):
        monkeypatch.setattr(checks, "connections", ConnectionHandler({"default": database}))
        return [str(message) for message in run_checks(tags=["ormbridge"])]

    return check


@pytest.fixture
def asgi(monkeypatch):
    """Return a function that makes ``<package>.asgi`` with an application."""

    def make(application, package="project"):
        module = types.ModuleType(f"{package}.asgi")
        module.application = application
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return make


@pytest.fixture(autouse=True)
def without_the_variable(monkeypatch):
    """Let nothing of the machine that runs the tests be warned of."""
    monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE", raising=False)
