"""Blocks: who is inside, whose turn it is, who is refused, on workers and on synchronous frames."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import contextvars
import functools
import re
import threading
from unittest import mock

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.db import database_sync_to_async as channels_database_sync_to_async
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpResponse
from django.test import TestCase

from ormbridge import (
    BridgeError,
    BridgeMiddleware,
    LeaseClosed,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
    release,
    stats,
)
from ormbridge.lease import Lease
from tests.blocks import (
    assert_whole,
    create,
    elsewhere,
    ended,
    first,
    in_atomic_block,
    set_timeout,
    thread_name,
    turns,
    usernames,
)
from tests.gate import GUARD
from tests.guide.http import get, request
from tests.settings import CHOICE
from tests.test_call import until
from tests.test_middleware import serve  # noqa: F401 - a fixture
from tests.test_process import run

pytestmark = pytest.mark.django_db(transaction=True)

BLOCKS = pytest.mark.parametrize("block", [atomic, pinned])


@pytest.fixture(autouse=True)
def whole(own_pool):
    """See after each test that no lease and no transaction was left open."""
    discarded = []
    yield discarded.append
    assert_whole(sum(discarded))


@pytest.fixture
def parallel_transactions(connection_settings):
    """Have a transaction of SQLite take its lock with the first statement, not with BEGIN."""
    if CHOICE == "sqlite":
        options = connections.settings["default"]["OPTIONS"]
        connection_settings(OPTIONS={**options, "transaction_mode": "DEFERRED"})


@pytest.fixture
def record(monkeypatch):
    """Return a list of what begins and ends on the connections, savepoints by their depth.

    Once in :func:`note`, what is written is in it too.
    """
    seen = []

    def watch(name, word):
        original = getattr(BaseDatabaseWrapper, name)

        def watched(self, *args):
            seen.append(word)
            return original(self, *args)

        monkeypatch.setattr(BaseDatabaseWrapper, name, watched)

    watch("_savepoint", "SAVEPOINT")
    watch("_savepoint_commit", "RELEASE")
    watch("_savepoint_rollback", "ROLLBACK TO")
    watch("_commit", "COMMIT")
    watch("_rollback", "ROLLBACK")
    return seen


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
    inside, leave = asyncio.Event(), asyncio.Event()

    async def inner():
        async with atomic():
            await create(username="inner")
            inside.set()
            await leave.wait()
            raise ZeroDivisionError

    async with atomic():
        task = asyncio.create_task(inner())
        await inside.wait()
        beside = [
            asyncio.create_task(create(username="bridge")),
            asyncio.create_task(sync_to_async(User.objects.create)(username="asgiref")),
        ]
        await turns()
        assert not any(each.done() for each in beside)
        leave.set()
        await ended(task)
        await asyncio.gather(*beside)
    assert await usernames() == ["asgiref", "bridge"]


async def test_calls_of_an_inner_block_overtake_those_of_the_outer_one():
    """Calls of the innermost block run although others have waited for longer."""
    ran = []
    inside, overtaken = asyncio.Event(), asyncio.Event()

    async def inner():
        async with atomic():
            inside.set()
            await overtaken.wait()
            await database_sync_to_async(ran.append)("inner")

    async with atomic():
        task = asyncio.create_task(inner())
        await inside.wait()
        outer = asyncio.create_task(database_sync_to_async(ran.append)("outer"))
        await turns()
        overtaken.set()
        await asyncio.gather(task, outer)
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
    async def work():
        await create(username="ann")
        inside.set()
        await leave.wait()
        raise ZeroDivisionError

    inside, leave = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(work())
    await inside.wait()
    look = database_sync_to_async(lambda: (thread_name(), connection.in_atomic_block))
    assert await look() == ("ormbridge-worker-2", False)
    leave.set()
    await ended(task)


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
    inside, leave = asyncio.Event(), asyncio.Event()

    async def inner():
        async with atomic():
            inside.set()
            await leave.wait()

    async with pinned():
        task = asyncio.create_task(inner())
        await inside.wait()
        beside = asyncio.create_task(database_sync_to_async(in_atomic_block)())
        await turns()
        assert not beside.done()
        leave.set()
        await task
        assert await beside is False


# Neighbours in one request or connection

HELD = [("http", {}), ("websocket", {"WEBSOCKET_LEASE": "connection"})]
PER_CALL = [("http", {"HTTP_LEASE": "call"}), ("websocket", {})]


@pytest.fixture
def visit(pool_settings):
    """Return a function that runs a coroutine function in a request or connection."""

    async def run_in(scope, lease, work):
        async def application(scope, receive, send):
            outcome.append(await work())

        outcome = []
        pool_settings(**lease)
        scope = {"type": scope, "method": "GET", "path": "/"}
        async with asyncio.timeout(GUARD):
            await BridgeMiddleware(application)(scope, mock.AsyncMock(), mock.AsyncMock())
        return outcome[0]

    return run_in


@pytest.mark.parametrize(("scope", "lease"), HELD)
async def test_neighbour_waits_for_the_block(visit, scope, lease):
    """Where a request holds its worker, a call beside a block waits, and never lands in it."""

    async def block():
        async with atomic():
            await create(username="ann")
            inside.set()
            await leave.wait()
            raise ZeroDivisionError

    async def work():
        first_name = await database_sync_to_async(thread_name)()
        task = asyncio.create_task(block())
        await inside.wait()
        beside = [
            asyncio.create_task(create(username="bridge")),
            asyncio.create_task(User.objects.acreate(username="native")),
            asyncio.create_task(database_sync_to_async(in_atomic_block)()),
        ]
        await turns()
        assert not any(each.done() for each in beside)
        leave.set()
        await ended(task)
        assert (await asyncio.gather(*beside))[2] is False
        assert await database_sync_to_async(thread_name)() == first_name

    inside, leave = asyncio.Event(), asyncio.Event()
    await visit(scope, lease, work)
    assert await usernames() == ["bridge", "native"]


@pytest.mark.parametrize(("scope", "lease"), PER_CALL)
async def test_neighbour_has_a_worker_of_its_own(visit, scope, lease):
    """Where each call takes a worker, a call beside a block runs on another one, at once."""

    async def block():
        async with atomic():
            await create(username="ann")
            name = await sync_to_async(thread_name)()
            inside.set()
            await leave.wait()
            return name

    async def work():
        task = asyncio.create_task(block())
        await inside.wait()
        names = {
            await database_sync_to_async(thread_name)(),
            await sync_to_async(thread_name)(),
        }
        assert await sync_to_async(in_atomic_block)() is False
        leave.set()
        assert await task not in names

    inside, leave = asyncio.Event(), asyncio.Event()
    await visit(scope, lease, work)


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

    async def block():
        async with pinned():
            names.append(await sync_to_async(thread_name)())
            inside.set()
            await leave.wait()
            names.append(await sync_to_async(thread_name)())

    async def work():
        task = asyncio.create_task(block())
        await inside.wait()
        names.append(await sync_to_async(thread_name)())
        leave.set()
        await task

    inside, leave = asyncio.Event(), asyncio.Event()
    names = []
    await visit(scope, lease, work)
    assert names == ["ormbridge-worker-1"] * 3


@pytest.mark.parametrize(("scope", "lease"), PER_CALL)
async def test_pinned_has_a_worker_to_itself(visit, scope, lease):
    """Beside pinned() where each call takes a worker, others use another one."""

    async def block():
        async with pinned():
            names.append(await sync_to_async(thread_name)())
            inside.set()
            await leave.wait()
            names.append(await database_sync_to_async(thread_name)())

    async def work():
        task = asyncio.create_task(block())
        await inside.wait()
        names.append(await sync_to_async(thread_name)())
        leave.set()
        await task

    inside, leave = asyncio.Event(), asyncio.Event()
    names = []
    await visit(scope, lease, work)
    assert names == ["ormbridge-worker-1", "ormbridge-worker-2", "ormbridge-worker-1"]


async def test_neighbour_that_waits_too_long_learns_what_for(visit):
    """A call that waits for TIMEOUT beside a block gets PoolTimeout with the block's place."""

    async def block():
        async with atomic():
            await create(username="ann")
            inside.set()
            await leave.wait()

    async def work():
        task = asyncio.create_task(block())
        await inside.wait()
        set_timeout(0.01)
        for call in (create(username="bridge"), User.objects.acreate(username="native")):
            with pytest.raises(PoolTimeout) as caught:
                await call
            assert re.search(
                r"waited \d+\.\d s for its turn on ormbridge-worker-1, which has GET /, idle, "
                r"inside atomic\(\) at test_blocks\.py:\d+ in "
                r"test_neighbour_that_waits_too_long_learns_what_for\.<locals>\.block\.",
                str(caught.value),
            )
        with pytest.raises(PoolTimeout, match=r"the beginning of atomic\(\) at test_blocks"):
            async with atomic():
                raise AssertionError("must not be entered")
        leave.set()
        await task

    inside, leave = asyncio.Event(), asyncio.Event()
    await visit("http", {}, work)
    assert await usernames() == ["ann"]


async def test_decorated_block_is_named_after_its_function(visit):
    """A block of a decorated function is named after it."""

    @atomic
    async def transfer():
        inside.set()
        await leave.wait()

    async def work():
        task = asyncio.create_task(transfer())
        await inside.wait()
        set_timeout(0.01)
        with pytest.raises(PoolTimeout, match=r"inside atomic\(\) around tests\..*\.transfer"):
            await usernames()
        leave.set()
        await task

    inside, leave = asyncio.Event(), asyncio.Event()
    await visit("http", {}, work)


async def test_cancelled_neighbour_never_runs(visit):
    """A call that is cancelled while it waits beside a block leaves the line."""

    async def block():
        async with atomic():
            inside.set()
            await leave.wait()

    async def work():
        task = asyncio.create_task(block())
        await inside.wait()
        beside = [
            asyncio.create_task(create(username="bridge")),
            asyncio.create_task(User.objects.acreate(username="native")),
        ]
        await turns()
        for each in beside:
            each.cancel()
        await asyncio.wait(beside)
        leave.set()
        await task

    inside, leave = asyncio.Event(), asyncio.Event()
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

    async def outlive():
        async with atomic():
            await User.objects.acreate(username="ann")
            inside.set()
            await over.wait()
            await User.objects.acreate(username="bob")
            return await sync_to_async(in_atomic_block)()

    async def work():
        task = asyncio.create_task(outlive())
        await inside.wait()
        return task

    inside, over = asyncio.Event(), asyncio.Event()
    task = await visit("http", {}, work)
    over.set()
    assert await asyncio.wait_for(task, GUARD) is True
    assert await usernames() == ["ann", "bob"]


async def test_block_in_the_lease_of_a_request_that_has_ended(visit):
    """So it does where the request's own task, which has ended, made the first call."""

    async def outlive():
        async with atomic():
            await User.objects.acreate(username="ann")
            inside.set()
            await over.wait()
            await User.objects.acreate(username="bob")

    async def work():
        await create(username="cyd")
        task = asyncio.create_task(outlive())
        await inside.wait()
        return task

    async def request():
        tasks.append(await visit("http", {}, work))

    inside, over, tasks = asyncio.Event(), asyncio.Event(), []
    await elsewhere(request())
    await turns()
    over.set()
    await asyncio.wait_for(tasks[0], GUARD)
    assert await usernames() == ["ann", "bob", "cyd"]


async def test_client_that_leaves_in_a_block(serve):  # noqa: F811
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
        rf"was called in {block.__name__}\(\) at test_blocks\.py:\d+ in test_straggler_is_refused,"
        r" which has ended: the calling task outlived the block\. .*contextvars\.Context\(\)",
        str(caught.value),
    ) or re.search(rf"{block.__name__}\(\) at test_blocks.* has ended", str(caught.value))


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
        r"atomic\(\) at test_blocks\.py:\d+ in two_blocks\.<locals>\.outer waited \d\.\d s for "
        r"atomic\(\) at test_blocks\.py:\d+ in two_blocks\.<locals>\.inner to end inside it; "
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

    def hurry(line, call):
        original(line, call)
        looks.append(call)

    original, looks = Lease.hurry, []
    leave, tasks = asyncio.Event(), []
    with mock.patch.object(Lease, "hurry", hurry):
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


# Synchronous frames


def main_thread(function=thread_name):
    return threading.main_thread().name


def test_block_under_async_to_sync():
    """Under async_to_sync a block runs on the thread that waits, and takes no worker."""

    async def work():
        async with atomic():
            names = {
                await database_sync_to_async(thread_name)(),
                await sync_to_async(thread_name)(),
            }
            assert await database_sync_to_async(in_atomic_block)()
            await User.objects.acreate(username="ann")
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await User.objects.acreate(username="bob")
                raise ZeroDivisionError
        return names

    assert async_to_sync(work)() == {main_thread()}
    assert sorted(User.objects.values_list("username", flat=True)) == ["ann"]
    assert stats().threads == 0


def test_pinned_under_async_to_sync():
    """Under async_to_sync pinned() is the frame's thread, and a straggler of it is refused."""

    async def straggle():
        await over.wait()
        return await User.objects.acount()

    over = asyncio.Event()

    async def work():
        async with pinned():
            names = {
                await database_sync_to_async(thread_name)(),
                await sync_to_async(thread_name)(),
            }
            task = asyncio.create_task(straggle())
        over.set()
        with pytest.raises(LeaseClosed):
            await task
        return names

    assert async_to_sync(work)() == {main_thread()}
    assert stats().threads == 0


def test_blocks_under_a_frame_take_turns(record):
    """Under a frame, gathered blocks run one after the other, in a block and outside of one."""

    @atomic()
    async def work(number):
        await create(username=f"{number} first")
        await turns()
        await User.objects.acreate(username=f"{number} second")
        if number % 2:
            raise LookupError

    async def outside():
        await asyncio.gather(*(work(n) for n in range(2)), return_exceptions=True)

    async def inside():
        async with atomic():
            await asyncio.gather(*(work(n) for n in range(2, 4)), return_exceptions=True)

    async_to_sync(outside)()
    async_to_sync(inside)()
    assert record == [
        *("COMMIT", "ROLLBACK"),
        *("SAVEPOINT", "RELEASE", "SAVEPOINT", "ROLLBACK TO", "RELEASE", "COMMIT"),
    ]
    names = ["0 first", "0 second", "2 first", "2 second"]
    assert sorted(User.objects.values_list("username", flat=True)) == names


def test_neighbour_under_a_frame_waits():
    """A call beside a block under one frame waits for it, the bridge's and Django's own."""

    async def block():
        async with atomic():
            inside.set()
            await leave.wait()
            await User.objects.acreate(username="ann")
            raise ZeroDivisionError

    async def work():
        task = asyncio.create_task(block())
        await inside.wait()
        beside = [
            asyncio.create_task(create(username="bridge")),
            asyncio.create_task(User.objects.acreate(username="native")),
            asyncio.create_task(sync_to_async(in_atomic_block)()),
        ]
        await turns()
        assert not any(each.done() for each in beside)
        leave.set()
        await ended(task)
        assert (await asyncio.gather(*beside))[2] is False

    inside, leave = asyncio.Event(), asyncio.Event()
    async_to_sync(work)()
    assert sorted(User.objects.values_list("username", flat=True)) == ["bridge", "native"]


def test_neighbour_under_a_frame_that_waits_too_long():
    """It gets PoolTimeout after TIMEOUT, which names the frame's thread and the block."""

    async def block():
        async with atomic():
            inside.set()
            await leave.wait()
            await create(username="ann")

    async def work():
        task = asyncio.create_task(block())
        await inside.wait()
        set_timeout(0.01)
        for call in (create(username="bridge"), User.objects.acreate(username="native")):
            with pytest.raises(
                PoolTimeout,
                match=rf"for its turn on {main_thread()}, which has a synchronous frame, .*, "
                r"inside atomic\(\) at test_blocks\.py:\d+ in test_neighbour_under",
            ):
                await call
        set_timeout(GUARD)
        leave.set()
        await task

    inside, leave = asyncio.Event(), asyncio.Event()
    async_to_sync(work)()
    assert sorted(User.objects.values_list("username", flat=True)) == ["ann"]


def test_cancelled_neighbour_under_a_frame_never_runs():
    """A call that is cancelled while it waits beside a block of a frame never runs."""

    async def block():
        async with atomic():
            inside.set()
            await leave.wait()

    async def work():
        task = asyncio.create_task(block())
        await inside.wait()
        beside = [
            asyncio.create_task(create(username="bridge")),
            asyncio.create_task(User.objects.acreate(username="native")),
            asyncio.create_task(atomic()(turns)()),
        ]
        await turns()
        for each in beside:
            each.cancel()
        await asyncio.wait(beside)
        assert all(each.cancelled() for each in beside)
        leave.set()
        await task
        assert await User.objects.acount() == 0

    inside, leave = asyncio.Event(), asyncio.Event()
    async_to_sync(work)()


@pytest.mark.parametrize("moment", ["__enter__", "__exit__"])
def test_cancelled_under_a_frame(gate, moment):
    """Under a frame a cancelled enter is undone, and a cancel during COMMIT lets it stand."""

    async def work():
        async with atomic():
            await create(username="ann")

    async def main():
        with first(transaction.Atomic, moment, gate):
            task = asyncio.create_task(work())
            await gate.entered()
            task.cancel()
            await turns()
            assert not task.done()
            gate.open.set()
            await ended(task)
        assert task.cancelled()
        assert not await database_sync_to_async(in_atomic_block)()

    async_to_sync(main)()
    names = ["ann"] if moment == "__exit__" else []
    assert sorted(User.objects.values_list("username", flat=True)) == names


async def test_straggler_after_the_end_of_the_frame():
    """A task that outlives both block and frame is refused; one of the frame alone goes on."""

    async def straggle():
        await over.wait()
        return await usernames()

    async def inside():
        tasks.append(asyncio.create_task(straggle()))
        async with atomic():
            tasks.append(asyncio.create_task(straggle()))
            tasks.append(asyncio.create_task(over.wait()))
            await create(username="ann")

    over, tasks = asyncio.Event(), []
    await database_sync_to_async(async_to_sync(inside))()
    over.set()
    assert await tasks[0] == ["ann"]
    with pytest.raises(LeaseClosed):
        await tasks[1]


async def test_native_straggler_after_the_end_of_the_frame():
    """An a-method in a task that outlives both block and frame is refused, too."""

    async def straggle():
        await over.wait()
        await User.objects.acreate(username="bob")

    async def inside():
        async with atomic():
            tasks.append(asyncio.create_task(straggle()))
            await create(username="ann")

    over, tasks = asyncio.Event(), []
    await database_sync_to_async(async_to_sync(inside))()
    over.set()
    with pytest.raises(RuntimeError):
        await tasks[0]
    assert await usernames() == ["ann"]


async def in_a_frame_that_ends(block, call):
    """Start a task in *block* under a frame that ends before it; return the task.

    :param call: what the task awaits when the event that is returned, too, is set.
    """

    async def outlive():
        async with block():
            await create(username="ann")
            inside.set()
            await over.wait()
            await call()

    async def frame():
        task = asyncio.create_task(outlive())
        await inside.wait()
        return task

    inside, over = asyncio.Event(), asyncio.Event()
    return await database_sync_to_async(async_to_sync(frame))(), over


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(turns, id="none"),
        pytest.param(lambda: create(username="bob"), id="bridge"),
    ],
)
async def test_frame_that_ends_with_a_block_open(call):
    """A block that outlives its frame is rolled back with it, and its task gets LeaseClosed."""
    task, over = await in_a_frame_that_ends(atomic, call)
    over.set()
    await ended(task)
    assert isinstance(task.exception(), LeaseClosed)
    assert await usernames() == []


async def test_native_call_in_a_block_whose_frame_has_ended():
    """asgiref itself refuses it."""
    task, over = await in_a_frame_that_ends(atomic, lambda: User.objects.acreate(username="bob"))
    over.set()
    await ended(task)
    assert isinstance(task.exception(), RuntimeError)
    assert await usernames() == []


async def test_neighbour_of_a_block_whose_frame_has_ended(visit):
    """In a request, a call beside a block that outlived its frame never lands in it."""

    async def fail():
        raise ZeroDivisionError

    async def work():
        task, over = await in_a_frame_that_ends(atomic, fail)
        neighbour = asyncio.create_task(create(username="neighbour"))
        await turns()
        over.set()
        await ended(task)
        await neighbour

    await visit("http", {}, work)
    assert await usernames() == ["neighbour"]


def test_loop_of_a_frame_that_ends_with_a_block_open():
    """Where async_to_sync runs its own loop, a task left in a block is rolled back by its end."""

    async def outlive():
        async with atomic():
            await create(username="ann")
            inside.set()
            await asyncio.Event().wait()

    async def frame():
        tasks.append(asyncio.create_task(outlive()))
        await inside.wait()

    inside, tasks = asyncio.Event(), []
    async_to_sync(frame)()
    assert tasks[0].cancelled()
    assert not connection.in_atomic_block
    assert User.objects.count() == 0


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


def test_frame_in_a_frame():
    """Blocks of nested frames on one thread are savepoints of each other."""

    async def inner():
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await User.objects.acreate(username="bob")
                raise ZeroDivisionError
        async with atomic():
            await create(username="cyd")
        return await sync_to_async(thread_name)()

    async def outer():
        async with atomic():
            await create(username="ann")
            return await database_sync_to_async(async_to_sync(inner))()

    assert async_to_sync(outer)() == main_thread()
    assert sorted(User.objects.values_list("username", flat=True)) == ["ann", "cyd"]


def test_context_and_errors_under_a_busy_frame():
    """Calls that go through a frame's line carry context variables, results and errors."""
    variable = contextvars.ContextVar("variable", default=0)

    def change():
        variable.set(variable.get() + 1)
        return variable.get()

    def stop():
        raise StopIteration

    async def work():
        async with atomic():
            found = [await database_sync_to_async(change)(), await sync_to_async(change)()]
            with pytest.raises(ZeroDivisionError):
                await sync_to_async(lambda: 1 / 0)()
            with pytest.raises(ZeroDivisionError):
                await database_sync_to_async(lambda: 1 / 0)()
            with pytest.raises(RuntimeError):
                await database_sync_to_async(stop)()
            return [*found, variable.get()]

    assert async_to_sync(work)() == [1, 2, 2]


def test_thread_sensitive_false_under_a_frame():
    """``thread_sensitive=False`` in a block of a frame leaves it for a worker."""

    async def work():
        async with atomic():
            call = database_sync_to_async(
                lambda: (thread_name(), connection.in_atomic_block), thread_sensitive=False
            )
            return await call()

    assert async_to_sync(work)() == ("ormbridge-worker-1", False)


async def test_sync_view_in_a_request(serve):  # noqa: F811
    """A sync view that uses async_to_sync has its blocks on its own worker."""

    async def work():
        async with atomic():
            name = await sync_to_async(thread_name)()
            await User.objects.acreate(username="ann")
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await create(username="bob")
                raise ZeroDivisionError
        return name

    def view(request):
        return HttpResponse(f"{thread_name()} {async_to_sync(work)()}")

    assert await get(serve(view)) == "200 ormbridge-worker-1 ormbridge-worker-1"
    assert await usernames() == ["ann"]


async def test_sync_view_with_one_worker(serve, pool_settings):  # noqa: F811
    """Sync views with blocks, more of them than workers, all end."""
    pool_settings(MAX_THREADS=1)

    @atomic()
    async def work(path):
        await User.objects.acreate(username=path)
        await asyncio.gather(create(username=f"{path} 1"), create(username=f"{path} 2"))

    def view(request):
        async_to_sync(work)(f"{len(paths)}")
        return HttpResponse()

    class Paths(list):
        def __len__(self):
            self.append(None)
            return super().__len__()

    paths = Paths()
    application = serve(view)
    await asyncio.gather(*(get(application) for _ in range(3)))
    assert len(await usernames()) == 9


class InDjangosTestCase(TestCase):
    """Under Django's TestCase blocks are savepoints of the test's transaction."""

    async def test_block(self):
        """A block sees what the test wrote, and nests in its transaction."""
        await User.objects.acreate(username="ann")
        async with atomic():
            assert await sync_to_async(thread_name)() == main_thread()
            assert await usernames() == ["ann"]
            await create(username="bob")
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await create(username="cyd")
                raise ZeroDivisionError
        assert await usernames() == ["ann", "bob"]
        assert stats().threads == 0

    async def test_durable(self):
        """TestCase lets durable blocks be: as in Django, its own block does not count."""
        async with atomic(durable=True):
            await create(username="ann")

    async def test_gather(self):
        """Gathered blocks take turns."""

        @atomic()
        async def work(number):
            await create(username=f"{number}")
            await turns()
            if number == 1:
                raise LookupError

        await asyncio.gather(*(work(n) for n in range(3)), return_exceptions=True)
        assert await usernames() == ["0", "2"]

    def test_callbacks_can_be_captured(self):
        """captureOnCommitCallbacks() finds plain and async callbacks, and runs them."""
        ran = []

        async def asynchronous():
            ran.append(await sync_to_async(thread_name)())

        @atomic()
        async def work():
            await sync_to_async(transaction.on_commit)(functools.partial(ran.append, "plain"))
            await sync_to_async(transaction.on_commit)(asynchronous)

        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            async_to_sync(work)()
            assert ran == []
        assert len(callbacks) == 2
        assert ran == ["plain", main_thread()]


# on_commit() under frames


@atomic()
async def register(*callbacks, robust=False):
    """Give *callbacks* to on_commit() in a block."""
    for callback in callbacks:
        await sync_to_async(transaction.on_commit)(callback, robust=robust)


def test_on_commit_under_a_frame():
    """Under a frame alone, async callbacks are awaited on the loop after the plain ones."""
    ran = []

    async def asynchronous():
        ran.append(thread_name())
        ran.append(await sync_to_async(in_atomic_block)())

    async_to_sync(register)(asynchronous, functools.partial(ran.append, "plain"))
    assert ran[0] == "plain"
    assert ran[1] != main_thread()
    assert ran[2] is False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_on_commit_in_a_synchronous_transaction_around_the_frame():
    """With a synchronous atomic() around the frame, callbacks wait for it, and run in order."""
    ran = []

    async def asynchronous(number):
        ran.append((number, await sync_to_async(in_atomic_block)()))

    with transaction.atomic():
        async_to_sync(register)(
            functools.partial(asynchronous, 0),
            functools.partial(ran.append, 1),
            lambda: asynchronous(2),
        )
        assert ran == []
    assert ran == [(0, False), 1, (2, False)]


def test_on_commit_is_dropped_with_the_transaction_around_the_frame():
    """If the synchronous atomic() around the frame fails, no callback runs."""
    ran = []

    async def asynchronous():
        ran.append("async")

    with pytest.raises(ZeroDivisionError):
        with transaction.atomic():
            async_to_sync(register)(asynchronous, functools.partial(ran.append, "plain"))
            raise ZeroDivisionError
    assert ran == []


def test_failing_callback_in_a_synchronous_transaction_around_the_frame():
    """An async callback that fails there raises where the synchronous atomic() ends."""
    ran = []

    async def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        with transaction.atomic():
            async_to_sync(register)(fail, functools.partial(ran.append, "behind"))
    assert ran == []


def test_robust_callback_in_a_synchronous_transaction_around_the_frame(caplog):
    """A robust async callback that fails there is logged, and those behind it run."""
    ran = []

    async def fail():
        raise ZeroDivisionError

    with transaction.atomic():
        async_to_sync(register)(fail, functools.partial(ran.append, "behind"), robust=True)
    assert ran == ["behind"]
    assert ["django.db.backends.base"] == [record.name for record in caplog.records]


def test_on_commit_in_two_blocks_of_one_frame():
    """Each async callback runs once, however many blocks there are between it and the commit."""
    ran = []

    async def asynchronous(number):
        ran.append(number)

    async def work():
        async with atomic():
            await register(functools.partial(asynchronous, 0))
        await register(functools.partial(asynchronous, 1))

    with transaction.atomic():
        async_to_sync(work)()
        assert ran == []
    assert ran == [0, 1]


async def test_on_commit_below_a_frame_in_a_block():
    """A block below a frame in a block leaves its async callbacks to the outer one's commit."""
    ran = []

    async def asynchronous(number):
        ran.append((number, thread_name()))

    async with atomic():
        await database_sync_to_async(async_to_sync(register))(functools.partial(asynchronous, 0))
        assert ran == []
    assert ran == [(0, main_thread())]


async def test_on_commit_of_a_synchronous_atomic_below_a_frame():
    """A synchronous atomic() around a frame in a worker awaits the callbacks as it commits."""
    ran = []

    async def asynchronous(number):
        ran.append(number)

    def view():
        with transaction.atomic():
            async_to_sync(register)(functools.partial(asynchronous, 0))
            ran.append("inside")
        ran.append("behind")

    await database_sync_to_async(view)()
    assert ran == ["inside", 0, "behind"]


# The end of the process

EXIT = """
import atexit
from django.contrib.auth.models import User
from ormbridge import LeaseClosed, atomic, pinned

inside, leave = threading.Event(), asyncio.Event()

async def work():
    async with BLOCK():
        await User.objects.acreate(username="ann")
        inside.set()
        await leave.wait()
        await User.objects.acreate(username="bob")

async def main():
    try:
        await work()
    except RuntimeError as error:
        print(type(error).__name__, flush=True)

loop = asyncio.new_event_loop()
task = loop.create_task(main())
threading.Thread(target=loop.run_forever, daemon=True).start()
inside.wait()

def end():
    loop.call_soon_threadsafe(leave.set)
    while not task.done():
        time.sleep(0.001)

atexit.register(end)
"""


# All that is printed of a block that nobody left.
LEFT = re.compile(r"(?P<block>.*) was not left: its worker is given back.*\n")


def test_interpreter_exit_rolls_an_open_block_back():
    """A block that is open as the interpreter exits is rolled back, and the process ends."""
    result = run(EXIT.replace("BLOCK", "atomic"))
    assert LEFT.fullmatch(result.stderr)["block"] == "atomic() at <string>:19 in work"
    assert result.stdout.splitlines() == ["LeaseClosed"]
    assert result.returncode == 0
    assert User.objects.count() == 0


def test_interpreter_exit_with_pinned():
    """A pinned() that is open as the interpreter exits loses its worker, and the process ends."""
    result = run(EXIT.replace("BLOCK", "pinned"))
    assert LEFT.fullmatch(result.stderr)["block"] == "pinned() at <string>:19 in work"
    assert result.stdout.splitlines() == ["LeaseClosed"]
    assert result.returncode == 0
    assert User.objects.count() == 1


def test_interpreter_exit_during_commit():
    """A COMMIT that runs as the interpreter exits is done before the process ends."""
    result = run(
        """
from django.contrib.auth.models import User
from django.db.backends.base.base import BaseDatabaseWrapper
from ormbridge import atomic

committing, exiting = threading.Event(), threading.Event()
threading._register_atexit(exiting.set)
original = BaseDatabaseWrapper._commit

def commit(self):
    committing.set()
    exiting.wait()
    time.sleep(0.05)  # a pool that does not wait would be gone by then
    original(self)
    print("committed", flush=True)

BaseDatabaseWrapper._commit = commit

async def work():
    async with atomic():
        await User.objects.acreate(username="ann")

loop = asyncio.new_event_loop()
task = loop.create_task(work())
threading.Thread(target=loop.run_forever, daemon=True).start()
committing.wait()
"""
    )
    assert result.stdout.splitlines() == ["committed"]
    assert result.returncode == 0
    assert User.objects.count() == 1


def test_interrupt_of_a_frame_with_a_block_open():
    """Ctrl-C in async_to_sync leaves its tasks behind; one in a block does not keep the process."""
    result = run(
        """
import os, signal
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from ormbridge import atomic

interrupted, exiting = threading.Event(), threading.Event()
threading._register_atexit(exiting.set)

def interrupt(*args):
    if not interrupted.is_set():
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)

async def work():
    async with atomic():
        await User.objects.acreate(username="ann")
        while not interrupted.is_set():  # what interrupts a call goes to its caller
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.01)
        await asyncio.to_thread(exiting.wait)

try:
    async_to_sync(work)()
except KeyboardInterrupt:
    interrupted.set()
    print("interrupted", flush=True)
"""
    )
    assert result.stdout.splitlines() == ["interrupted"]
    assert result.returncode == 0
    assert User.objects.count() == 0


BY_HAND = """
import sys
from django.contrib.auth.models import User
from ormbridge import atomic, pinned, stats

async def main():
    block = BLOCK()
    await block.__aenter__()
    CALL
    sys.exit(3)

asyncio.run(main())
"""


@pytest.mark.parametrize("call", ["await User.objects.acreate(username='ann')", ""])
@pytest.mark.parametrize("block", ["atomic", "pinned"])
def test_block_entered_by_hand_and_never_left(transactional_db, block, call):
    """A program that never leaves a block ends as it likes; one line names the block."""
    result = run(BY_HAND.replace("BLOCK", block).replace("CALL", call))
    if block == "pinned" and not call:  # it has never had a worker
        assert result.stderr == ""
    else:
        assert LEFT.fullmatch(result.stderr)["block"] == f"{block}() at <string>:18 in main"
    assert result.returncode == 3
    assert User.objects.count() == (1 if block == "pinned" and call else 0)
