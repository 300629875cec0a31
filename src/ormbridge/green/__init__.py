"""Synchronous ORM code on the event loop's own thread, in greenlets: no thread, no hop."""

from importlib.util import find_spec

from django.db import connections, transaction


def missing() -> str | None:
    """Say what is missing, or in the way, so that nothing runs green. Imports no driver."""
    for module in ("greenlet", "psycopg"):
        if find_spec(module) is None:
            return f"{module} is not installed"
    # Packages that cache queries keep there what is of the transaction of their thread.
    for method in (transaction.Atomic.__enter__, transaction.Atomic.__exit__):
        if (code := method.__code__).co_filename != transaction.atomic.__code__.co_filename:
            return f"{code.co_filename} does something of its own in each atomic()"
    engines = " ".join(settings["ENGINE"] for settings in connections.settings.values())
    return None if "postg" in engines or "psql" in engines else "no database is PostgreSQL"
