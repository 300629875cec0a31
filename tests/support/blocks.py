"""What the tests of blocks share: who is where, and methods that a test can hold half-way."""

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest import mock

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction

from ormbridge import atomic, database_sync_to_async, pinned
from ormbridge.core import process
from tests.core.gate import GUARD

BLOCKS = pytest.mark.parametrize("block", [atomic, pinned])

# Outside of a block Django's own a-methods would connect on a thread that no pool closes.
create = database_sync_to_async(User.objects.create)


@database_sync_to_async
def usernames() -> list[str]:
    """Return the names of all users, sorted."""
    return sorted(User.objects.values_list("username", flat=True))


@database_sync_to_async
def usernames_of_other() -> list[str]:
    """Return the names of all users of the other database, sorted."""
    return sorted(User.objects.using("other").values_list("username", flat=True))


def in_atomic_block() -> bool:
    return connection.in_atomic_block


def main_thread() -> str:
    return threading.main_thread().name


def elsewhere(coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
    """Start *coroutine* in a task that inherits nothing: outside of every block."""
    return asyncio.create_task(coroutine, context=contextvars.Context())


async def turns(number: int = 20) -> None:
    """Let the loop turn *number* times: what could go on by itself has gone on."""
    for _ in range(number):
        await asyncio.sleep(0)


async def ended(task: Awaitable[Any]) -> None:
    """Wait until *task* has ended, however it does; the guard against hanging."""
    done, _ = await asyncio.wait([asyncio.ensure_future(task)], timeout=GUARD)
    assert done, f"{task} has not ended within {GUARD} s"


@asynccontextmanager
async def beside(
    work: Callable[[Callable[[], Awaitable[None]]], Coroutine[Any, Any, Any]],
) -> "AsyncIterator[asyncio.Task[Any]]":
    """Start *work* in a task, and be beside it while it holds.

    :param work: what to run, with a block for example. It gets a function, and holds where it
        awaits that. It goes on, and ends, where the ``async with`` does. What it raises is raised
        there, unless it was cancelled from beside.
    """
    inside, leave = asyncio.get_running_loop().create_future(), asyncio.Event()

    async def hold() -> None:
        inside.set_result(None)
        await leave.wait()

    task = asyncio.create_task(work(hold))
    try:
        await asyncio.wait([task, inside], timeout=GUARD, return_when=asyncio.FIRST_COMPLETED)
        assert inside.done(), f"{task} does not hold"
        yield task
    finally:
        leave.set()
        await ended(task)
    if not task.cancelling():
        task.result()


@contextmanager
def first(owner: Any, name: str, action: Callable[[], object]) -> Iterator[None]:
    """Have *action* called before each call of the method *name* of *owner*."""
    original = getattr(owner, name)

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        action()
        return original(self, *args, **kwargs)

    with mock.patch.object(owner, name, patched):
        yield


def assert_whole(discarded: int = 0) -> None:
    """See that every worker of the pool is free, or will be at once, and nobody waits.

    :param discarded: how many connections were thrown away with what was left open on them.
    """
    if process._pool is None:
        return
    deadline = time.monotonic() + GUARD
    stats = process._pool.stats()
    while stats.holders or stats.waiting or stats.idle != stats.threads:
        assert time.monotonic() < deadline, f"a lease is left: {stats}"
        time.sleep(0.001)
        stats = process._pool.stats()
    assert stats.discarded == discarded


async def on_commit(callback: Callable[[], object], **options: Any) -> None:
    """Register *callback* in the transaction of the block."""
    await database_sync_to_async(transaction.on_commit)(callback, **options)
