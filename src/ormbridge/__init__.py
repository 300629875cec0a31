"""Call the Django ORM from async code, on a bounded pool of threads with clean connections.

A public name is imported when it is asked for, and the wings that look after connections with the
first call: a program that only wraps functions does not pay for the rest as it starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.core.checks import CheckMessage, register

from .core import hooks

if TYPE_CHECKING:
    from .asgi.middleware import BridgeMiddleware, release
    from .blocks.atomic import atomic
    from .blocks.pinned import pinned
    from .core.bridge import DatabaseSyncToAsync, aclose_old_connections, database_sync_to_async
    from .core.errors import (
        BridgeError,
        LeaseClosed,
        PoolClosed,
        PoolTimeout,
        TransactionAborted,
    )
    from .core.process import stats
    from .core.stats import PoolStats
    from .streaming.rows import stream

__version__ = "0.1.0"

_PLACES = {
    "BridgeError": "core.errors",
    "BridgeMiddleware": "asgi.middleware",
    "DatabaseSyncToAsync": "core.bridge",
    "LeaseClosed": "core.errors",
    "PoolClosed": "core.errors",
    "PoolStats": "core.stats",
    "PoolTimeout": "core.errors",
    "TransactionAborted": "core.errors",
    "aclose_old_connections": "core.bridge",
    "atomic": "blocks.atomic",
    "database_sync_to_async": "core.bridge",
    "pinned": "blocks.pinned",
    "release": "asgi.middleware",
    "stats": "core.process",
    "stream": "streaming.rows",
}

__all__ = [
    "BridgeError",
    "BridgeMiddleware",
    "DatabaseSyncToAsync",
    "LeaseClosed",
    "PoolClosed",
    "PoolStats",
    "PoolTimeout",
    "TransactionAborted",
    "aclose_old_connections",
    "atomic",
    "database_sync_to_async",
    "pinned",
    "release",
    "stats",
    "stream",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_PLACES[name]}", __name__), name)
    return value


@register("ormbridge")
def _check(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Check the settings, with ``manage.py check``."""
    from .checks import check_settings

    return check_settings(app_configs, **kwargs)


def _load_wings() -> None:
    """Import what looks after the connections of plain calls, too."""
    from .blocks import witness as witness
    from .postgres import canceller as canceller
    from .postgres import closing as closing


hooks.load.append(_load_wings)
