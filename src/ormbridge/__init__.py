"""Call the Django ORM from async code, on a bounded pool of threads with clean connections."""

from . import checks as checks
from .bridge import DatabaseSyncToAsync, aclose_old_connections, database_sync_to_async
from .errors import BridgeError, PoolClosed, PoolTimeout
from .middleware import BridgeMiddleware, release
from .process import stats
from .stats import PoolStats

__version__ = "0.1.0"

__all__ = [
    "BridgeError",
    "BridgeMiddleware",
    "DatabaseSyncToAsync",
    "PoolClosed",
    "PoolStats",
    "PoolTimeout",
    "aclose_old_connections",
    "database_sync_to_async",
    "release",
    "stats",
]
