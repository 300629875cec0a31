"""What a test captures on the workers: its queries, and what it gives to ``on_commit()``.

Queries are counted on whatever thread and connection they run. Django's ``CaptureQueriesContext``
reads the log of one connection. Each worker has its own, opens it when it likes, and empties its
log when it is given back. So all connections of the process log while a block counts, and what
Django writes to its logger ``django.db.backends`` is collected.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any
from unittest import mock

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from ..blocks.on_commit import await_callbacks, given
from ..core.bridge import database_sync_to_async
from ..core.connections import connections_of_thread

_logger = logging.getLogger("django.db.backends")
_connect = BaseDatabaseWrapper.connect

# The queries of the blocks that count now, each with its alias, by the list's id: they may overlap.
_counting: dict[int, tuple[str, list[dict[str, str]]]] = {}
_patches = ExitStack()


@asynccontextmanager
async def assert_num_queries(
    num: int, connection: Any = None, info: str = "", *, using: str = "default", exact: bool = True
) -> AsyncGenerator[list[dict[str, str]], None]:
    """See that *num* queries are made while the block runs: ``async with``.

    What pytest-django's ``django_assert_num_queries`` is for synchronous tests. Queries on all
    threads count, whoever makes them: calls of the bridge, ``a``-methods, ``atomic()``, streams,
    views and consumers, on connections that are open and on those opened in the block. Savepoints,
    ``BEGIN`` and ``COMMIT`` count, as in Django; what a connection begins with and what ``RESET``
    names does not.

    Yields a list to which each query is added: ``{"sql": …, "time": …}``, as in Django.

    **Cancellation.** A block that is left with an error raises that error only. A call that was
    cancelled and runs on counts as long as the block lasts.

    :param connection: count the queries to its alias; otherwise to *using*.
    :param info: what the error says in addition.
    :param exact: whether fewer queries are an error, too.
    :raises AssertionError: if there were more queries than *num*, or fewer; it lists them.
    """
    alias = using if connection is None else connection.alias
    queries: list[dict[str, str]] = []
    if not _counting:
        logs: Any = {"queries_logged": True, "connect": _connect_quietly}
        _patches.enter_context(mock.patch.multiple(BaseDatabaseWrapper, **logs))
        _patches.enter_context(mock.patch.object(_logger, "debug", _note))
    _counting[id(queries)] = alias, queries
    try:
        yield queries
    finally:
        del _counting[id(queries)]
        if not _counting:
            _patches.close()
    if len(queries) > num or (exact and len(queries) < num):
        lines = [f"{num}{'' if exact else ' at the most'} expected", *([info] if info else [])]
        lines += [f"* {each['sql']}" for each in queries]
        raise AssertionError(f"{len(queries)} queries to {alias!r}, " + "\n".join(lines))


def _connect_quietly(connection: BaseDatabaseWrapper) -> None:
    vars(connection)["queries_logged"] = False
    try:
        _connect(connection)
    finally:
        vars(connection).pop("queries_logged")


def _note(*args: Any, extra: Any = None, **kwargs: Any) -> None:
    own = connections_of_thread()
    if own is None or own.running is not None:  # otherwise it is RESET
        for alias, queries in list(_counting.values()):
            if alias == (extra or {}).get("alias"):
                queries.append({"sql": str(extra["sql"]), "time": f"{extra['duration']:.3f}"})
    logging.Logger.debug(_logger, *args, extra=extra, **kwargs)


@asynccontextmanager
async def capture_on_commit_callbacks(
    using: str = DEFAULT_DB_ALIAS, execute: bool = False
) -> AsyncGenerator[list[Callable[[], Any]], None]:
    """Collect the functions given to ``transaction.on_commit()`` in the block.

    What Django's ``TestCase.captureOnCommitCallbacks`` is for synchronous tests. Also for async
    tests of ``TestCase``.

    **Cancellation.** A block that is left with an error runs nothing.

    :param execute: run them as the block ends, those that they register too: functions on the
        worker, coroutine functions on the event loop.
    """
    callbacks: list[Callable[[], Any]] = []

    @database_sync_to_async
    def registered() -> list[Any]:
        return list(connections[using].run_on_commit)

    seen = len(await registered())
    yield callbacks
    while new := (await registered())[seen:]:
        seen += len(new)
        for _, func, robust in new:
            callbacks.append(callback := given(func))
            if execute:
                await await_callbacks(callback, [(_call(callback), robust)], cancelled=False)


async def _call(callback: Callable[[], Any]) -> None:
    # Not the callback itself: a coroutine function would be refused.
    outcome = await database_sync_to_async(lambda: callback())()
    if inspect.isawaitable(outcome):
        await outcome
