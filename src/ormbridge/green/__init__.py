"""Synchronous ORM code on the event loop's own thread, in greenlets: no thread, no hop."""

from importlib.util import find_spec

from django.db import connections


def missing() -> str | None:
    """Say what is missing, so that nothing runs green. Imports no driver."""
    for module in ("greenlet", "psycopg"):
        if find_spec(module) is None:
            return f"{module} is not installed"
    ours = any("postg" in settings["ENGINE"] for settings in connections.settings.values())
    return None if ours else "no database is PostgreSQL"
