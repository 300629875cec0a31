"""Stragglers: tasks that outlived their block are refused, and nothing of them lands elsewhere."""

# What a block does, and raises, is more than one statement.

import asyncio
import contextvars
import re

import pytest
from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async as channels_database_sync_to_async
from django.contrib.auth.models import User
from django.db.backends.base.base import BaseDatabaseWrapper

from ormbridge import (
    BridgeError,
    LeaseClosed,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
    stats,
)
from tests.core.gate import GUARD
from tests.core.support import set_timeout, thread_name, until
from tests.support.blocks import (
    BLOCKS,
    create,
    elsewhere,
    ended,
    first,
    in_atomic_block,
    usernames,
)

pytestmark = pytest.mark.django_db(transaction=True)


# Stragglers


async def enter_block():
    async with atomic():
        raise AssertionError("must not be entered")


async def enter_pinned():
    async with pinned():
        raise AssertionError("must not be entered")


async def iterate():
    return [user async for user in User.objects.all()]


KINDS = {
    "bridge": usernames,
    "native": User.objects.acount,
    "iteration": iterate,
    "asgiref": sync_to_async(thread_name),
    "channels": channels_database_sync_to_async(thread_name),
    "atomic": enter_block,
    "pinned": enter_pinned,
}


@BLOCKS
@pytest.mark.parametrize("kind", KINDS)
async def test_straggler_is_refused(block, kind):
    """A call of a task that outlived its block raises LeaseClosed, and says what to do instead."""

    async def straggle():
        await over.wait()
        return await KINDS[kind]()

    over = asyncio.Event()
    async with block():
        await create(username="ann")
        task = asyncio.create_task(straggle())
    over.set()
    with pytest.raises(LeaseClosed) as caught:
        await task
    assert isinstance(caught.value, BridgeError)
    assert isinstance(caught.value, RuntimeError)
    assert re.search(
        rf"was called in {block.__name__}\(\) at test_stragglers\.py:\d+ in "
        r"test_straggler_is_refused, which has ended: the calling task outlived the block\. "
        r".*contextvars\.Context\(\)",
        str(caught.value),
    ) or re.search(rf"{block.__name__}\(\) at test_stragglers.* has ended", str(caught.value))


async def test_straggler_of_an_inner_block_is_refused():
    """A task that outlived an inner block is refused though the outer one is open."""

    async def straggle():
        await over.wait()
        await create(username="bob")

    over = asyncio.Event()
    async with atomic():
        async with atomic():
            task = asyncio.create_task(straggle())
        over.set()
        with pytest.raises(LeaseClosed):
            await task
        await create(username="ann")
    assert await usernames() == ["ann"]


@BLOCKS
async def test_straggler_with_a_context_of_its_own_goes_on(block):
    """A task with a new context is outside of the block, during it and after it."""

    async def straggle():
        names = [await usernames()]
        inside.set()
        await over.wait()
        async with atomic():
            await User.objects.acreate(username="bob")
        return [*names, await usernames()]

    inside, over = asyncio.Event(), asyncio.Event()
    async with block():
        await database_sync_to_async(len)("")
        task = asyncio.create_task(straggle(), context=contextvars.Context())
        await inside.wait()
    over.set()
    assert await task == [[], ["bob"]]


async def test_straggler_with_thread_sensitive_false_goes_on():
    """``thread_sensitive=False`` was outside of the block all along, so it is no straggler."""

    async def straggle():
        await over.wait()
        return await database_sync_to_async(in_atomic_block, thread_sensitive=False)()

    over = asyncio.Event()
    async with atomic():
        task = asyncio.create_task(straggle())
    over.set()
    assert await task is False


async def test_block_refuses_calls_from_its_commit_on(gate):
    """While COMMIT runs, a call of the block is refused: it would come after it."""

    async def straggle():
        await committing.wait()
        await create(username="bob")

    async def work():
        async with atomic():
            stragglers.append(asyncio.create_task(straggle()))
            await create(username="ann")

    committing, stragglers = asyncio.Event(), []
    with first(BaseDatabaseWrapper, "_commit", gate):
        task = asyncio.create_task(work())
        await gate.entered()
        committing.set()
        with pytest.raises(LeaseClosed):
            await stragglers[0]
        gate.open.set()
        await task
    assert await usernames() == ["ann"]


async def test_such_a_straggler_of_pinned_holds_no_worker():
    """Nor does it keep a worker for a pinned() that has ended."""

    async def straggle():
        await over.wait()
        return await database_sync_to_async(thread_name, thread_sensitive=False)()

    over = asyncio.Event()
    async with pinned():
        task = asyncio.create_task(straggle())
    over.set()
    await task
    await until(lambda: not stats().holders)


@pytest.mark.parametrize("scope", ["lifespan", "http", "websocket"])
async def test_pinned_goes_on_after_calls_that_waited_in_vain(visit, gate, scope):
    """Calls of pinned() that had no worker in time cost the block nothing: later ones run."""

    async def work():
        holder = elsewhere(database_sync_to_async(gate)())
        await gate.entered()
        async with pinned():
            set_timeout(0.01)
            for _ in range(2):
                with pytest.raises(PoolTimeout):
                    await database_sync_to_async(thread_name)()
            set_timeout(GUARD)
            gate.open.set()
            await holder
            return {await database_sync_to_async(thread_name)() for _ in range(3)}

    assert await visit(scope, {"MAX_THREADS": 1}, work) == {"ormbridge-worker-1"}


async def test_pinned_goes_on_after_a_first_call_that_was_cancelled(gate, pool_settings):
    """So it does where the first call was cancelled while it waited for a worker."""
    pool_settings(MAX_THREADS=1)
    holder = elsewhere(database_sync_to_async(gate)())
    await gate.entered()
    async with pinned():
        call = asyncio.create_task(database_sync_to_async(thread_name)())
        await until(lambda: stats().waiting == 1)
        call.cancel()
        await ended(call)
        gate.open.set()
        await holder
        assert await database_sync_to_async(thread_name)() == "ormbridge-worker-1"
        assert await sync_to_async(thread_name)() == "ormbridge-worker-1"


async def test_straggler_in_a_request(visit):
    """In a request that holds its worker, a straggler of a block is refused as well."""

    async def straggle():
        await over.wait()
        await User.objects.acreate(username="bob")

    async def work():
        async with atomic():
            task = asyncio.create_task(straggle())
            await User.objects.acreate(username="ann")
        over.set()
        with pytest.raises(LeaseClosed):
            await task
        return await usernames()

    over = asyncio.Event()
    assert await visit("http", {}, work) == ["ann"]
