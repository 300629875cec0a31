"""The pool of this process: made by the first call, closed at exit, not shared by a fork.

Guarantees:

* at interpreter exit running calls finish, and waiting ones are refused;
* a forked child starts with an empty pool and never touches the parent's connections;
* bad settings are found here when the package is imported, if Django has its settings by then.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from . import hooks
from .connections import ThreadConnections, follow_receivers
from .pool import Pool
from .settings import load_settings
from .stats import PoolStats
from .worker import Worker

# Seconds between two looks at a worker that is to end, and may wait for a server in vain.
_GLANCE = 0.1

_pool: Pool | None = None
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
#: Held to make what there is one of: the pool, and the lease of a synchronous frame. Re-entrant:
#: the module that RESET names is imported under it, and may ask for stats(). A fork renews it.
lock = threading.RLock()


def after_fork(function: Callable[[], object]) -> None:
    """Have *function* called in each child that this process forks."""
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=function)


def default_pool() -> Pool:
    """Return the pool of this process; it is made by the first call.

    :raises ImproperlyConfigured: if ``settings.ORMBRIDGE`` or ``ASGI_THREADS`` is not accepted.
    """
    global _pool
    if _pool is None:
        with lock:
            if _pool is None:
                settings = load_settings()
                hooks.load(settings)
                follow_receivers()
                _pool = Pool(settings)
                _pools.add(_pool)
    return _pool


def stats() -> PoolStats:
    """Return a snapshot of the pool of this process. May be called from any thread."""
    return default_pool().stats()


def live_pools() -> list[Pool]:
    """Return the pools that may have workers: new settings may have replaced one in use."""
    return list(_pools)


def end(pool: Pool, patience: float | None = None) -> None:
    """Refuse the calls that wait in *pool*, and wait until every worker has ended.

    :param patience: seconds to wait for each worker, at the most.
    """
    workers = pool.close(refuse=True)
    hooks.rescue()
    deadline = time.monotonic() + ThreadConnections.BOUND
    for worker in filter(Worker.is_alive, workers):  # others may be about to start
        while patience is None and worker.is_alive():
            worker.join(max(deadline - time.monotonic(), _GLANCE))
            worker.connections.cut()
        worker.join(patience)


def end_pools(patience: float) -> None:
    """End every pool, see :func:`end`; the next call makes a new one."""
    global _pool
    with lock:
        _pool = None
    for pool in live_pools():
        end(pool, patience)


def _close_at_exit() -> None:
    with lock:
        # A worker started from now on would be cut off in the middle of its call, if the
        # interpreter lets it start at all.
        Pool.closed = True
    for pool in live_pools():
        end(pool)


def _reset_after_fork() -> None:
    import ctypes  # dear, and seldom needed

    global _pool, lock
    lock = threading.RLock()
    # The threads and the connections are the parent's.
    for worker in [worker for pool in _pools for worker in pool.workers]:
        # Freeing a connection would say goodbye to the server in the parent's name (mysqlclient
        # does), so these live until the process ends, its finalization included.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(worker.connections.opened))
        worker.connections.opened = []
        # The child may go on in the middle of a call, while other threads of the parent had these.
        worker.connections.finishing = threading.RLock()
        worker.pool._lock = threading.RLock()
    _pools.clear()
    _pool = None


def _reload(setting: str, **kwargs: object) -> None:
    # override_settings in a test: the next call meets a pool with the new settings.
    global _pool
    if setting == "ORMBRIDGE" and _pool is not None:
        _pool.close(refuse=False)
        _pool = None


# As concurrent.futures does: before the interpreter waits for threads that are not daemons. atexit
# would be too late.
threading._register_atexit(_close_at_exit)  # type: ignore[attr-defined]
after_fork(_reset_after_fork)
setting_changed.connect(_reload, dispatch_uid="ormbridge.pool")
if django_settings.configured:
    load_settings()  # better to fail here than at the first call
