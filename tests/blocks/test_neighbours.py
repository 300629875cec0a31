"""Neighbours of a block in one request or connection: who waits, and who goes on beside it."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import contextlib
import contextvars
import functools
import re

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import connection, transaction

from ormbridge import (
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
    release,
    stats,
)
from tests.core.gate import GUARD
from tests.core.support import set_timeout, thread_name, until
from tests.support.blocks import (
    beside,
    create,
    elsewhere,
    ended,
    in_atomic_block,
    turns,
    usernames,
)
from tests.support.http import request

pytestmark = pytest.mark.django_db(transaction=True)


# Neighbours in one request or connection

HELD = [("http", {}), ("websocket", {"WEBSOCKET_LEASE": "connection"})]


PER_CALL = [("http", {"HTTP_LEASE": "call"}), ("websocket", {})]


@pytest.mark.parametrize(("scope", "lease"), HELD)
async def test_neighbour_waits_for_the_block(visit, scope, lease):
    """Where a request holds its worker, a call beside a block waits, and never lands in it."""

    async def block(hold):
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await create(username="ann")
                await hold()
                raise ZeroDivisionError

    async def work():
        first_name = await database_sync_to_async(thread_name)()
        async with beside(block):
            calls = [
                asyncio.create_task(create(username="bridge")),
                asyncio.create_task(User.objects.acreate(username="native")),
                asyncio.create_task(database_sync_to_async(in_atomic_block)()),
            ]
            await turns()
            assert not any(each.done() for each in calls)
        assert (await asyncio.gather(*calls))[2] is False
        assert await database_sync_to_async(thread_name)() == first_name

    await visit(scope, lease, work)
    assert await usernames() == ["bridge", "native"]


@pytest.mark.parametrize(("scope", "lease"), PER_CALL)
async def test_neighbour_has_a_worker_of_its_own(visit, scope, lease):
    """Where each call takes a worker, a call beside a block runs on another one, at once."""

    async def block(hold):
        async with atomic():
            await create(username="ann")
            name = await sync_to_async(thread_name)()
            await hold()
            return name

    async def work():
        async with beside(block) as task:
            names = {
                await database_sync_to_async(thread_name)(),
                await sync_to_async(thread_name)(),
            }
            assert await sync_to_async(in_atomic_block)() is False
        assert await task not in names

    await visit(scope, lease, work)


@pytest.mark.parametrize("call", [database_sync_to_async, sync_to_async])
@pytest.mark.parametrize(("scope", "lease"), PER_CALL)
async def test_neighbour_in_the_same_context(visit, gate, scope, lease, call):
    """Two tasks have one context: the end of a call of one leaves the other in its block."""

    async def block(task):
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                gate.open.set()
                await task
                await create(username="ann")
                await User.objects.acreate(username="bob")
                raise ZeroDivisionError

    async def work():
        context = contextvars.copy_context()
        task = asyncio.create_task(call(gate)(), context=context)
        await gate.entered()
        await asyncio.create_task(block(task), context=context)

    await visit(scope, lease, work)
    assert await usernames() == []


@pytest.mark.parametrize(("scope", "lease"), HELD)
async def test_neighbouring_blocks_take_turns(visit, record, scope, lease):
    """Two blocks of one request that holds its worker run one after the other."""

    @atomic()
    async def block(number):
        await create(username=f"{number}")
        await turns()
        if number == 1:
            raise LookupError
        await User.objects.acreate(username=f"{number} too")

    async def work():
        await asyncio.gather(*(block(n) for n in range(3)), return_exceptions=True)

    await visit(scope, lease, work)
    assert record == ["COMMIT", "ROLLBACK", "COMMIT"]
    assert await usernames() == ["0", "0 too", "2", "2 too"]


@pytest.mark.parametrize(("scope", "lease"), PER_CALL)
async def test_neighbouring_blocks_run_in_parallel(visit, parallel_transactions, scope, lease):
    """Two blocks of one connection whose calls take a worker each are open at one time."""

    @atomic()
    async def block():
        await sync_to_async(thread_name)()
        await both_inside.wait()
        return await sync_to_async(thread_name)()

    async def work():
        return await asyncio.gather(block(), block())

    both_inside = asyncio.Barrier(2)
    assert len(set(await visit(scope, lease, work))) == 2


@pytest.mark.parametrize(("scope", "lease"), HELD + PER_CALL)
async def test_one_worker_is_enough(visit, scope, lease):
    """With one worker, blocks in and beside each other in a request never wait for a second one."""

    @atomic()
    async def block(number):
        await create(username=f"{number}")
        async with pinned():
            async with atomic():
                await User.objects.acreate(username=f"{number} too")

    async def work():
        await asyncio.gather(*(block(n) for n in range(3)), usernames())
        return await usernames()

    names = await visit(scope, {**lease, "MAX_THREADS": 1}, work)
    assert len(names) == 6


@pytest.mark.parametrize(("scope", "lease"), HELD)
async def test_neighbours_of_pinned_run_in_between(visit, scope, lease):
    """Beside pinned() in a request that holds its worker, others use that worker in between."""

    async def block(hold):
        async with pinned():
            names.append(await sync_to_async(thread_name)())
            await hold()
            names.append(await sync_to_async(thread_name)())

    async def work():
        async with beside(block):
            names.append(await sync_to_async(thread_name)())

    names = []
    await visit(scope, lease, work)
    assert names == ["ormbridge-worker-1"] * 3


@pytest.mark.parametrize(("scope", "lease"), PER_CALL)
async def test_pinned_has_a_worker_to_itself(visit, scope, lease):
    """Beside pinned() where each call takes a worker, others use another one."""

    async def block(hold):
        async with pinned():
            names.append(await sync_to_async(thread_name)())
            await hold()
            names.append(await database_sync_to_async(thread_name)())

    async def work():
        async with beside(block):
            names.append(await sync_to_async(thread_name)())

    names = []
    await visit(scope, lease, work)
    assert names == ["ormbridge-worker-1", "ormbridge-worker-2", "ormbridge-worker-1"]


async def test_neighbour_that_waits_too_long_learns_what_for(visit):
    """A call that waits for TIMEOUT beside a block gets PoolTimeout with the block's place."""

    async def block(hold):
        async with atomic():
            await create(username="ann")
            await hold()

    async def work():
        async with beside(block):
            set_timeout(0.01)
            for call in (create(username="bridge"), User.objects.acreate(username="native")):
                with pytest.raises(PoolTimeout) as caught:
                    await call
                assert re.search(
                    r"waited \d+\.\d s for its turn on ormbridge-worker-1, which has GET /, idle, "
                    r"inside atomic\(\) at test_neighbours\.py:\d+ in "
                    r"test_neighbour_that_waits_too_long_learns_what_for\.<locals>\.block\.",
                    str(caught.value),
                )
            beginning = r"the beginning of atomic\(\) at test_neighbours"
            with pytest.raises(PoolTimeout, match=beginning):
                async with atomic():
                    raise AssertionError("must not be entered")

    await visit("http", {}, work)
    assert await usernames() == ["ann"]


async def test_decorated_block_is_named_after_its_function(visit):
    """A block of a decorated function is named after it."""

    @atomic
    async def transfer(hold):
        await hold()

    async def work():
        async with beside(transfer):
            set_timeout(0.01)
            with pytest.raises(PoolTimeout, match=r"inside atomic\(\) around tests\..*\.transfer"):
                await usernames()

    await visit("http", {}, work)


async def test_cancelled_neighbour_never_runs(visit):
    """A call that is cancelled while it waits beside a block leaves the line."""

    async def block(hold):
        async with atomic():
            await hold()

    async def work():
        async with beside(block):
            calls = [
                asyncio.create_task(create(username="bridge")),
                asyncio.create_task(User.objects.acreate(username="native")),
            ]
            await turns()
            for each in calls:
                each.cancel()
            await asyncio.wait(calls)

    await visit("http", {}, work)
    assert await usernames() == []


async def test_request_holds_its_worker_after_a_block(visit):
    """A block in a request that holds its worker does not give that back."""

    async def work():
        async with atomic():
            await create(username="ann")
        held = len(stats().holders)
        async with pinned():
            worker = await sync_to_async(thread_name)()
            await release()  # the request's hold; the block's stays
            assert worker == await sync_to_async(thread_name)()
            held += len(stats().holders)
        return held

    assert await visit("http", {}, work) == 2


async def test_release_in_the_block_of_a_request(visit):
    """release() in a block of a request keeps the worker to the block's end, and no longer."""

    async def work():
        async with atomic():
            await create(username="ann")
            await release()
            await turns()
            assert len(stats().holders) == 1
            assert await sync_to_async(in_atomic_block)()
            await release()  # that call holds it again
        assert not stats().holders
        await database_sync_to_async(len, thread_sensitive=False)("")
        return True

    assert await visit("http", {}, work)
    assert await usernames() == ["ann"]


async def test_block_in_a_transaction_begun_by_hand(visit):
    """atomic() of a task that has a transaction open in its connection makes a savepoint of it."""

    def begin():
        block.__enter__()
        User.objects.create(username="ann")

    async def work():
        await sync_to_async(begin)()
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                assert await sync_to_async(lambda: len(connection.atomic_blocks))() == 2
                await User.objects.acreate(username="bob")
                raise ZeroDivisionError
        await sync_to_async(block.__exit__)(None, None, None)

    block = transaction.atomic()
    await visit("websocket", {"MAX_THREADS": 1}, work)
    assert await usernames() == ["ann"]


async def test_block_while_an_iteration_is_suspended(visit):
    """atomic() inside a loop over aiterator() in a socket is on the worker of the iteration."""

    async def work():
        await User.objects.abulk_create(User(username=f"{n}") for n in range(6))
        async for user in User.objects.order_by("id").aiterator(chunk_size=2):
            async with atomic():
                await User.objects.filter(pk=user.pk).aupdate(first_name="seen")
        return await User.objects.filter(first_name="seen").acount()

    assert await visit("websocket", {"MAX_THREADS": 1}, work) == 6


async def test_block_in_a_task_that_outlives_its_request(visit):
    """A task that outlives its request may open blocks, on the pool."""

    async def outlive():
        await over.wait()
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await User.objects.acreate(username="ann")
                raise ZeroDivisionError
        async with atomic():
            await User.objects.acreate(username="bob")

    async def work():
        await create(username="cyd")
        return asyncio.create_task(outlive())

    over = asyncio.Event()
    task = await visit("http", {}, work)
    over.set()
    await asyncio.wait_for(task, GUARD)
    assert await usernames() == ["bob", "cyd"]


async def test_block_that_outlives_its_request(visit):
    """A block that is open when its request ends goes on, and ends in its own time."""

    async def outlive(hold):
        async with atomic():
            await User.objects.acreate(username="ann")
            await hold()
            await User.objects.acreate(username="bob")
            return await sync_to_async(in_atomic_block)()

    async with contextlib.AsyncExitStack() as stack:
        work = functools.partial(stack.enter_async_context, beside(outlive))
        task = await visit("http", {}, work)
    assert await task is True
    assert await usernames() == ["ann", "bob"]


async def test_block_in_the_lease_of_a_request_that_has_ended(visit):
    """So it does where the request's own task, which has ended, made the first call."""

    async def outlive(hold):
        async with atomic():
            await User.objects.acreate(username="ann")
            await hold()
            await User.objects.acreate(username="bob")

    async def work():
        await create(username="cyd")
        return await stack.enter_async_context(beside(outlive))

    async with contextlib.AsyncExitStack() as stack:
        await elsewhere(visit("http", {}, work))
        await turns()
    assert await usernames() == ["ann", "bob", "cyd"]


async def test_client_that_leaves_in_a_block(serve):
    """A view whose client leaves while it is in a block is rolled back."""

    async def view(request):
        async with atomic():
            await User.objects.acreate(username="ann")
            inside.set()
            await asyncio.Event().wait()

    inside = asyncio.Event()
    client = request(serve(view))
    await client.send_input({"type": "http.request"})
    await inside.wait()
    await client.send_input({"type": "http.disconnect"})
    await ended(client.future)
    await until(lambda: not stats().holders)
    assert await usernames() == []
