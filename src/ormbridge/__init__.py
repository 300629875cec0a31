"""Call the Django ORM from async code, on a bounded pool of threads with clean connections.

A public name is imported when it is asked for, and the wings that look after connections with the
first call: a program that only wraps functions does not pay for the rest as it starts.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from django.core.checks import CheckMessage, register

from .core import hooks
from .core.errors import BridgeError, LeaseClosed, PoolClosed, PoolTimeout, TransactionAborted
from .core.settings import Settings

if TYPE_CHECKING:
    from .asgi.middleware import BridgeMiddleware, release
    from .blocks.atomic import atomic
    from .blocks.pinned import pinned
    from .core.bridge import DatabaseSyncToAsync, aclose_old_connections, database_sync_to_async
    from .core.process import stats
    from .core.stats import PoolStats
    from .streaming.rows import stream

__version__ = "0.1.0"

# Where each public name is.
_PLACES = {
    "asgi.middleware": ("BridgeMiddleware", "release"),
    "blocks.atomic": ("atomic",),
    "blocks.pinned": ("pinned",),
    "core.bridge": ("DatabaseSyncToAsync", "aclose_old_connections", "database_sync_to_async"),
    "core.process": ("stats",),
    "core.stats": ("PoolStats",),
    "streaming.rows": ("stream",),
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
    for place, names in _PLACES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f".{place}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@register("ormbridge")
def _check(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """Check the settings, with ``manage.py check``."""
    from .checks import check_settings

    return check_settings(app_configs, **kwargs)


def _load_wings(settings: Settings) -> None:
    """Import what looks after the connections of plain calls, too."""
    from .blocks import witness as witness
    from .postgres import canceller as canceller

    if settings.green or "green" in globals():
        from . import green

        if green.missing() is None:
            from .green.switch import switch

            switch(settings)


hooks.load = _load_wings
