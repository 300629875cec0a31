"""Tasks inside a block: whose turn it is, and what is in which savepoint."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio

import pytest
from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async as channels_database_sync_to_async
from django.contrib.auth.models import User
from django.db import connection

from ormbridge import (
    atomic,
    database_sync_to_async,
    pinned,
    stats,
)
from ormbridge.leases.turns import Block, Line
from tests.core.gate import GUARD
from tests.core.support import thread_name
from tests.support.blocks import (
    beside,
    create,
    in_atomic_block,
    turns,
    usernames,
)

pytestmark = pytest.mark.django_db(transaction=True)


# Tasks inside a block


async def test_gather_of_plain_calls_is_inside():
    """Calls gathered in a block run one at a time in its transaction, and are rolled back."""
    with pytest.raises(ZeroDivisionError):
        async with atomic():
            await asyncio.gather(
                *(create(username=f"bridge {n}") for n in range(4)),
                *(User.objects.acreate(username=f"native {n}") for n in range(4)),
                *(sync_to_async(User.objects.create)(username=f"asgiref {n}") for n in range(4)),
                *(
                    channels_database_sync_to_async(User.objects.create)(username=f"channels {n}")
                    for n in range(4)
                ),
            )
            assert await User.objects.acount() == 16
            raise ZeroDivisionError
    assert await usernames() == []
    assert stats().threads == 1


async def test_calls_of_a_block_run_in_the_order_in_which_they_came():
    """Bridge calls and a-methods of one block share one line: first in, first out."""
    ran = []
    async with atomic():
        await asyncio.gather(
            *(
                (database_sync_to_async if n % 2 else sync_to_async)(ran.append)(n)
                for n in range(10)
            )
        )
    assert ran == list(range(10))


def test_call_in_a_block_is_found_without_a_look_at_those_outside():
    """What a call in a block costs does not grow with the blocks that wait to begin."""

    class Seen:
        stays_out = closes = False

        def __init__(self, route):
            self.belongs_to, self.looks = route, 0

        @property
        def route(self):
            self.looks += 1
            return self.belongs_to

    line, block = Line(), Block("atomic()", None, "default")
    outside, inside = [Seen(None) for _ in range(5)], [Seen(block) for _ in range(5)]
    line.open(block)
    assert not any(line.append(call) for call in outside)
    assert all(line.append(call) for call in inside)
    looks = sum(call.looks for call in outside)
    assert [line.take() for _ in range(6)] == [*inside, None]
    assert sum(call.looks for call in outside) == looks
    line.close(block)
    assert [line.take() for _ in range(6)] == [*outside, None]


async def test_task_group_in_a_block_is_inside():
    """A TaskGroup in a block that fails takes the whole block back."""

    async def fail():
        await create(username="bob")
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        async with atomic():
            async with asyncio.TaskGroup() as group:
                group.create_task(create(username="ann"))
                group.create_task(fail())
                group.create_task(User.objects.acreate(username="cyd"))
    assert await usernames() == []


async def test_gathered_blocks_in_a_block_take_turns(record):
    """Of @atomic coroutines gathered in a block, one that fails takes back only what it did."""

    @atomic()
    async def work(number):
        await create(username=f"{number} first")
        await turns()  # let the others come in between
        await User.objects.acreate(username=f"{number} second")
        await turns()
        if number % 2:
            raise LookupError

    async with atomic():
        found = await asyncio.gather(*(work(n) for n in range(4)), return_exceptions=True)
    assert [type(each) for each in found] == [type(None), LookupError] * 2
    assert await usernames() == ["0 first", "0 second", "2 first", "2 second"]
    kept, taken_back = ["SAVEPOINT", "RELEASE"], ["SAVEPOINT", "ROLLBACK TO", "RELEASE"]
    assert record == [*kept, *taken_back, *kept, *taken_back, "COMMIT"]


async def test_blocks_of_a_task_group_in_a_block_take_turns():
    """So do the blocks of a TaskGroup; each sees its own savepoint as the innermost one."""

    @atomic()
    async def work(number):
        for _ in range(3):
            depths.append(await sync_to_async(lambda: len(connection.savepoint_ids))())
            await turns(3)
        await create(username=f"{number}")

    depths = []
    async with atomic():
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(work(number))
    assert depths == [1] * 12
    assert await usernames() == ["0", "1", "2", "3"]


async def test_nested_blocks_of_many_tasks_take_turns():
    """Blocks in blocks of several tasks never mix: each row stands or falls with its own."""

    @atomic()
    async def inner(name, fail):
        await create(username=name)
        await turns(3)
        if fail:
            raise LookupError

    @atomic()
    async def work(number):
        await create(username=f"{number}")
        await asyncio.gather(
            inner(f"{number} a", False), inner(f"{number} b", True), return_exceptions=True
        )
        if number == 1:
            raise LookupError

    async with atomic():
        await asyncio.gather(*(work(n) for n in range(3)), return_exceptions=True)
    assert await usernames() == ["0", "0 a", "2", "2 a"]


async def test_call_beside_an_inner_block_waits_until_that_has_ended():
    """A call of the outer block that is made while an inner one is open runs after it."""

    async def inner(hold):
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await create(username="inner")
                await hold()
                raise ZeroDivisionError

    async with atomic():
        async with beside(inner):
            calls = [
                asyncio.create_task(create(username="bridge")),
                asyncio.create_task(sync_to_async(User.objects.create)(username="asgiref")),
            ]
            await turns()
            assert not any(each.done() for each in calls)
        await asyncio.gather(*calls)
    assert await usernames() == ["asgiref", "bridge"]


async def test_calls_of_an_inner_block_overtake_those_of_the_outer_one():
    """Calls of the innermost block run although others have waited for longer."""
    ran = []

    async def inner(hold):
        async with atomic():
            await hold()
            await database_sync_to_async(ran.append)("inner")

    async with atomic():
        async with beside(inner):
            outer = asyncio.create_task(database_sync_to_async(ran.append)("outer"))
            await turns()
        await outer
    assert ran == ["inner", "outer"]


async def test_gathered_blocks_outside_of_any_run_in_parallel(parallel_transactions):
    """Outside of a block each @atomic coroutine has a worker and a transaction of its own."""
    all_inside = asyncio.Barrier(3)

    @atomic()
    async def work():
        name = await database_sync_to_async(thread_name)()
        await all_inside.wait()
        return name

    async with asyncio.timeout(GUARD):
        names = await asyncio.gather(work(), work(), work())
    assert sorted(names) == [f"ormbridge-worker-{n}" for n in (1, 2, 3)]


async def test_gathered_blocks_outside_of_any_with_one_worker(pool_settings):
    """With fewer workers than blocks they take turns, and none is lost."""
    pool_settings(MAX_THREADS=1)

    @atomic()
    async def work(number):
        await create(username=f"{number}")
        await turns(3)
        if number % 2:
            raise LookupError

    await asyncio.gather(*(work(n) for n in range(6)), return_exceptions=True)
    assert await usernames() == ["0", "2", "4"]


async def test_plain_calls_beside_a_block_are_outside():
    """Calls gathered with a block, not in it, run on other workers, outside of its transaction."""

    @atomic()
    async def work(hold):
        await create(username="ann")
        await hold()

    look = database_sync_to_async(lambda: (thread_name(), connection.in_atomic_block))
    async with beside(work):
        assert await look() == ("ormbridge-worker-2", False)


async def test_task_started_before_the_block_is_outside():
    """A task belongs to the block that its context inherited, not to the one open meanwhile."""

    async def beside():
        await go.wait()
        return await database_sync_to_async(in_atomic_block)()

    go = asyncio.Event()
    task = asyncio.create_task(beside())
    async with atomic():
        go.set()
        assert await task is False


async def test_block_in_pinned_takes_turns_with_the_calls_of_pinned():
    """In pinned() a call beside an atomic() waits for it: it would be in its transaction."""

    async def inner(hold):
        async with atomic():
            await hold()

    async with pinned():
        async with beside(inner):
            call = asyncio.create_task(database_sync_to_async(in_atomic_block)())
            await turns()
            assert not call.done()
        assert await call is False
