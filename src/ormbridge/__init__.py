"""Call the Django ORM from async code, on a bounded pool of threads with clean connections."""

from . import checks as checks
from .bridge import DatabaseSyncToAsync, aclose_old_connections, database_sync_to_async
from .errors import BridgeError, LeaseClosed, PoolClosed, PoolTimeout, TransactionAborted
from .middleware import BridgeMiddleware, release
from .pinning import pinned
from .process import stats
from .stats import PoolStats
from .streaming import stream
from .transactions import atomic

__version__ = "0.1.0"

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
