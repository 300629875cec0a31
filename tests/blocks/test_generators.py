"""Blocks in generators, context managers and fixtures."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import contextlib
import contextvars
import gc

import pytest
from django.contrib.auth.models import User
from django.db import (
    transaction,
)

from ormbridge import (
    LeaseClosed,
    atomic,
    database_sync_to_async,
    pinned,
    stats,
)
from tests.core.support import thread_name, until
from tests.support.blocks import (
    create,
    elsewhere,
    ended,
    in_atomic_block,
    turns,
    usernames,
)

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


# Generators


async def test_async_generator_is_refused():
    """atomic() and pinned() in an async generator are refused, and say what to do."""
    for block in (atomic, pinned):

        async def generator(block=block):
            async with block():
                yield 1

        with pytest.raises(RuntimeError, match=r"asynccontextmanager") as caught:
            async for _ in generator():
                raise AssertionError("must not be entered")
        assert f"{block.__name__}() at test_generators.py:" in str(caught.value)
    assert stats().threads == 0


async def test_async_exit_stack_in_an_async_generator_is_refused():
    """So is a block that an AsyncExitStack in an async generator enters."""

    async def generator():
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(atomic())
            yield 1

    with pytest.raises(RuntimeError, match=r"test_generators.py:\d+ in .*generator is in an async"):
        async for _ in generator():
            raise AssertionError("must not be entered")
    assert stats().threads == 0


async def test_async_context_manager():
    """A block in a function of contextlib.asynccontextmanager covers the ``async with``."""

    @contextlib.asynccontextmanager
    async def unit_of_work(username):
        async with atomic():
            await create(username=username)
            yield username

    async with unit_of_work("ann") as name:
        await User.objects.acreate(username=f"{name} too")
        assert await database_sync_to_async(in_atomic_block)()
    with pytest.raises(ZeroDivisionError):
        async with unit_of_work("bob"):
            raise ZeroDivisionError
    assert await usernames() == ["ann", "ann too"]


async def test_async_exit_stack():
    """AsyncExitStack enters and leaves blocks like ``async with``."""
    with pytest.raises(ZeroDivisionError):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(atomic())
            await create(username="ann")
            raise ZeroDivisionError
    assert await usernames() == []


@pytest.fixture
async def block():
    """Enter a block for the time of a test."""
    async with atomic():
        yield
        await database_sync_to_async(transaction.set_rollback)(True)


async def test_fixture_of_a_plugin(block):
    """A block in a fixture of pytest-asyncio is around the test."""
    await User.objects.acreate(username="ann")
    assert await database_sync_to_async(in_atomic_block)()


async def test_left_in_another_context():
    """A block left in another task than it was entered in is rolled back, and says so."""

    async def enter():
        await block.__aenter__()
        await create(username="bob")

    block = atomic()
    await asyncio.create_task(enter())
    assert len(stats().holders) == 1
    with pytest.raises(RuntimeError, match="was left in another context"):
        await block.__aexit__(None, None, None)
    assert stats().holders == ()
    await create(username="ann")
    assert await usernames() == ["ann"]


async def test_call_in_a_block_that_was_left_in_another_context_says_why():
    """A call that comes to such a block later is told of that, and not of tasks that outlive it."""
    block, context = pinned(), contextvars.copy_context()
    await asyncio.create_task(block.__aenter__(), context=context)
    with pytest.raises(RuntimeError, match="was left in another context"):
        await block.__aexit__(None, None, None)
    with pytest.raises(LeaseClosed, match="rolled back: it was left in another context"):
        await asyncio.create_task(usernames(), context=context)


async def test_pinned_left_in_another_context():
    """So it is with pinned()."""

    async def enter():
        await block.__aenter__()
        await database_sync_to_async(thread_name)()

    block = pinned()
    await asyncio.create_task(enter())
    assert len(stats().holders) == 1
    with pytest.raises(RuntimeError, match="was left in another context"):
        await block.__aexit__(None, None, None)


async def test_generator_that_is_closed_has_rolled_back(gate):
    """To close a generator waits for the rollback of a block in it, as leaving the block does."""

    @contextlib.asynccontextmanager
    async def unit_of_work():
        async with atomic():
            yield

    async def generator():
        async with unit_of_work():
            await create(username="ann")
            yield

    rows = generator()
    await anext(rows)
    call = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    closing = asyncio.create_task(rows.aclose())
    await turns()
    assert not closing.done()
    gate.open.set()
    await closing
    assert stats().holders == ()
    await call
    assert await elsewhere(usernames()) == []


async def test_generator_closed_by_the_loop_rolls_back():
    """A block in a context manager that nobody left is rolled back as the loop collects it."""

    @contextlib.asynccontextmanager
    async def unit_of_work():
        async with atomic():
            yield

    async def work():
        manager = unit_of_work()
        await manager.__aenter__()
        await create(username="ann")
        del manager

    task = elsewhere(work())
    await ended(task)
    del task
    gc.collect()
    await until(lambda: not stats().holders)
    assert await usernames() == []
