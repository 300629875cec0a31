"""An inner block that is still open as the outer one ends."""

# What a block does, and raises, is more than one statement.

import asyncio
import re
import time
from unittest import mock

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import transaction

from ormbridge import (
    LeaseClosed,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
)
from ormbridge.leases import lease
from tests.core.gate import GUARD
from tests.core.support import set_timeout, until
from tests.support.blocks import (
    create,
    ended,
    first,
    in_atomic_block,
    turns,
    usernames,
)

pytestmark = pytest.mark.django_db(transaction=True)


# An inner block that is still open as the outer one ends


async def two_blocks(end_inner, *, fail=False):
    """Leave a block while a task is in an inner one; return both tasks.

    :param end_inner: what the inner block waits for.
    """

    async def inner():
        async with atomic():
            await create(username="inner")
            inside.set()
            await end_inner()

    async def outer():
        async with atomic():
            await create(username="outer")
            tasks.append(asyncio.create_task(inner()))
            await inside.wait()
            if fail:
                raise ZeroDivisionError

    tasks = []
    inside = asyncio.Event()
    task = asyncio.create_task(outer())
    await inside.wait()
    await turns()
    assert not task.done()
    return task, tasks[0]


@pytest.mark.parametrize("fail", [False, True])
async def test_end_waits_for_inner_blocks(fail):
    """A block that ends while one is open inside it waits for that."""
    leave = asyncio.Event()
    outer, inner = await two_blocks(leave.wait, fail=fail)
    leave.set()
    await ended(inner)
    await ended(outer)
    assert inner.exception() is None
    assert isinstance(outer.exception(), ZeroDivisionError if fail else type(None))
    assert await usernames() == ([] if fail else ["inner", "outer"])


async def test_end_that_waits_for_inner_blocks_is_cancelled():
    """A cancellation of an end that waits for an inner block goes on when both have ended."""
    leave = asyncio.Event()
    outer, inner = await two_blocks(leave.wait)
    outer.cancel()
    await turns()
    assert not outer.done()
    leave.set()
    await ended(inner)
    await ended(outer)
    assert outer.cancelled()
    assert await usernames() == ["inner", "outer"]


async def test_inner_block_makes_no_calls_once_the_outer_one_ends():
    """An inner block whose outer one waits for its end is refused calls, and rolled back."""
    leave = asyncio.Event()

    async def late():
        await leave.wait()
        await create(username="late")

    outer, inner = await two_blocks(late)
    leave.set()
    await ended(inner)
    await ended(outer)
    assert isinstance(inner.exception(), LeaseClosed)
    assert outer.exception() is None
    assert await usernames() == ["outer"]


async def test_end_waits_for_inner_blocks_at_most_timeout():
    """After TIMEOUT both blocks are rolled back; each says so, with the place of the inner one."""
    leave = asyncio.Event()
    outer, inner = await two_blocks(leave.wait)
    set_timeout(0.01)
    await ended(outer)
    set_timeout(GUARD)
    assert isinstance(outer.exception(), PoolTimeout)
    assert re.search(
        r"atomic\(\) at test_inner_blocks\.py:\d+ in two_blocks\.<locals>\.outer waited "
        r"\d\.\d s for atomic\(\) at test_inner_blocks\.py:\d+ in two_blocks\.<locals>\.inner "
        r"to end inside it; "
        r"both were rolled back",
        str(outer.exception()),
    )
    assert await usernames() == []
    leave.set()
    await ended(inner)
    assert isinstance(inner.exception(), LeaseClosed)
    assert "was rolled back" in str(inner.exception())
    assert await usernames() == []


async def test_block_that_waits_to_close_is_rolled_back_after_timeout():
    """A block in between, which waits for its inner one too, hears that it was rolled back."""
    inside, leave_middle, leave_inner = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def inner():
        async with atomic():
            inside.set()
            await leave_inner.wait()

    async def middle():
        async with atomic():
            tasks.append(asyncio.create_task(inner()))
            await leave_middle.wait()

    async def outer():
        async with atomic():
            tasks.append(asyncio.create_task(middle()))
            await inside.wait()

    tasks = [asyncio.create_task(outer())]
    await inside.wait()
    await turns()
    leave_middle.set()
    await turns()
    set_timeout(0.01)
    await ended(tasks[0])
    await ended(tasks[1])
    set_timeout(GUARD)
    assert isinstance(tasks[0].exception(), PoolTimeout)
    assert isinstance(tasks[1].exception(), LeaseClosed)
    leave_inner.set()
    await ended(tasks[2])
    assert isinstance(tasks[2].exception(), LeaseClosed)
    async with atomic():
        await create(username="again")
    assert await usernames() == ["again"]


async def test_inner_block_of_a_request_is_rolled_back_after_timeout(visit):
    """In a request, the worker is fit for use after blocks were rolled back like that."""

    async def work():
        leave = asyncio.Event()
        outer, inner = await two_blocks(leave.wait)
        set_timeout(0.01)
        await ended(outer)
        set_timeout(GUARD)
        await User.objects.acreate(username="after")
        assert not await sync_to_async(in_atomic_block)()
        leave.set()
        await ended(inner)
        assert isinstance(inner.exception(), LeaseClosed)
        async with atomic():
            await User.objects.acreate(username="again")
        return isinstance(outer.exception(), PoolTimeout)

    assert await visit("http", {}, work)
    assert await usernames() == ["after", "again"]


async def test_end_past_its_time_as_an_inner_block_begins(gate):
    """An end whose time is up while an inner block still begins does not wait for that for ever."""

    async def inner():
        async with atomic():
            await leave.wait()

    async def outer():
        async with atomic():
            with first(transaction.Atomic, "__enter__", gate):
                tasks.append(asyncio.create_task(inner()))
                await gate.entered()
            set_timeout(0.01)

    def hurry(calls):
        original(calls)
        looks.extend(calls)

    original, looks = lease.hurry, []
    leave, tasks = asyncio.Event(), []
    with mock.patch.object(lease, "hurry", hurry):
        task = asyncio.create_task(outer())
        await until(lambda: len(looks) == 2)
        gate.open.set()
        await asyncio.wait([task], timeout=GUARD)
    overdue = task.done()
    leave.set()
    await ended(tasks[0])
    await ended(task)
    assert overdue
    assert isinstance(task.exception(), PoolTimeout)
    assert isinstance(tasks[0].exception(), LeaseClosed)


async def test_end_of_a_block_that_was_undone_runs_at_once():
    """A block that was rolled back says so, also if its end runs before anybody can stop it."""

    def put(self, call, hold=False):
        accepted = original(self, call, hold)
        if call.closes and call.route.undone:
            time.sleep(0.1)  # the loop's thread loses the interpreter here
        return accepted

    original, leave = lease.Lease.put, asyncio.Event()
    async with pinned():  # the lease goes on
        await database_sync_to_async(len)("")
        outer, inner = await two_blocks(leave.wait)
        set_timeout(0.01)
        await ended(outer)
        set_timeout(GUARD)
        with mock.patch.object(lease.Lease, "put", put):
            leave.set()
            await ended(inner)
    assert isinstance(inner.exception(), LeaseClosed)
    assert await usernames() == []


async def test_overdue_inner_block_that_fails_by_itself():
    """What an inner block raises goes on, also if it was rolled back before."""
    leave = asyncio.Event()

    async def fail():
        await leave.wait()
        raise LookupError

    outer, inner = await two_blocks(fail)
    set_timeout(0.01)
    await ended(outer)
    set_timeout(GUARD)
    leave.set()
    await ended(inner)
    assert isinstance(inner.exception(), LookupError)
    assert await usernames() == []


def test_inner_block_under_a_frame_is_rolled_back_after_timeout():
    """Under a frame, too, an outer block waits for an inner one, at most TIMEOUT seconds."""

    async def work():
        leave = asyncio.Event()
        outer, inner = await two_blocks(leave.wait)
        set_timeout(0.01)
        await ended(outer)
        set_timeout(GUARD)
        assert isinstance(outer.exception(), PoolTimeout)
        assert await usernames() == []
        assert not await database_sync_to_async(in_atomic_block)()
        leave.set()
        await ended(inner)
        assert isinstance(inner.exception(), LeaseClosed)

    async_to_sync(work)()
