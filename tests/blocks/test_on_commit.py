"""on_commit() in a block: where callbacks run, in what order, and what a failure of one costs."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import contextlib
import functools
import logging

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import (
    connection,
    transaction,
)

from ormbridge import (
    atomic,
    database_sync_to_async,
)
from tests.core.support import thread_name
from tests.support.blocks import (
    create,
    elsewhere,
    in_atomic_block,
    main_thread,
    on_commit,
    turns,
    usernames,
)

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


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


def between_two_databases(ran):
    """Register below a frame, in a block of the other database, in a transaction of this one."""

    async def asynchronous():
        ran.append("awaited")

    async def below():
        async with atomic("other"):
            await register(asynchronous)

    with transaction.atomic():
        async_to_sync(below)()
        assert ran == []
    return ran


def test_on_commit_below_a_block_of_another_alias(other_database):
    """Of blocks around, those of the same database say when it commits: a synchronous one here."""
    assert between_two_databases([]) == ["awaited"]


async def test_on_commit_below_a_block_of_another_alias_on_a_worker(other_database):
    """So it is in a synchronous view."""
    assert await database_sync_to_async(between_two_databases)([]) == ["awaited"]


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


async def test_on_commit_in_a_transaction_begun_by_hand(visit):
    """An async callback of a block waits for the transaction around it, whoever began that."""
    ran = []

    async def asynchronous():
        ran.append(await sync_to_async(in_atomic_block)())

    async def work():
        await sync_to_async(around.__enter__)()
        await register(asynchronous)
        assert ran == []
        await sync_to_async(around.__exit__)(None, None, None)

    around = transaction.atomic()
    await visit("websocket", {"MAX_THREADS": 1}, work)
    assert ran == [False]


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


# on_commit


async def test_plain_callback_runs_on_the_worker_after_the_commit():
    """A plain function given to on_commit() runs on the block's worker, after the commit."""
    ran = []

    def callback():
        ran.append((thread_name(), connection.in_atomic_block, User.objects.count()))

    async with atomic():
        await create(username="ann")
        await on_commit(callback)
        await sync_to_async(transaction.on_commit)(callback)
        await turns()
        assert ran == []
    assert ran == [("ormbridge-worker-1", False, 1)] * 2


async def test_async_callback_is_awaited_on_the_loop_after_the_commit():
    """A coroutine function is awaited on the event loop, when others see what was committed."""
    ran = []

    async def callback():
        names = await elsewhere(usernames())
        ran.append((thread_name(), names, await database_sync_to_async(in_atomic_block)()))

    async with atomic():
        await create(username="ann")
        await on_commit(callback)
        await turns()
        assert ran == []
    assert ran == [(thread_name(), ["ann"], False)]


async def test_order_of_callbacks():
    """Plain callbacks come first, then the async ones, each kind in the order of registration."""
    ran = []

    async def asynchronous(number):
        await asyncio.sleep(0)
        ran.append(number)

    class Callable:
        async def __call__(self):
            await asynchronous(4)

    async with atomic():
        await on_commit(functools.partial(asynchronous, 2))
        await on_commit(functools.partial(ran.append, 0))
        await on_commit(lambda: asynchronous(3))
        await on_commit(Callable())
        await on_commit(functools.partial(ran.append, 1))
    assert ran == [0, 1, 2, 3, 4]


async def test_callbacks_of_what_is_rolled_back_never_run():
    """A rollback drops the callbacks, that of a nested block only those of that block."""
    ran = []

    async def asynchronous(number):
        ran.append(number)

    async with atomic():
        await on_commit(functools.partial(asynchronous, 2))
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await on_commit(functools.partial(asynchronous, -1))
                await on_commit(functools.partial(ran.append, -2))
                raise ZeroDivisionError
        async with atomic():
            await on_commit(functools.partial(asynchronous, 3))
            await on_commit(functools.partial(ran.append, 1))
        assert ran == []
    assert ran == [1, 2, 3]
    with pytest.raises(ZeroDivisionError):
        async with atomic():
            await on_commit(functools.partial(asynchronous, -3))
            raise ZeroDivisionError
    assert ran == [1, 2, 3]


async def test_callbacks_of_another_alias(other_database):
    """Callbacks of another alias run when its own block commits."""
    ran = []

    async def asynchronous():
        ran.append("other")

    async with atomic():
        async with atomic(using="other"):
            await on_commit(asynchronous, using="other")
            await on_commit(functools.partial(ran.append, "default"))
        assert ran == ["other"]
    assert ran == ["other", "default"]


async def test_failing_plain_callback():
    """A plain callback that fails ends the row and raises from the block; the commit stands."""
    ran = []

    def fail():
        raise ZeroDivisionError

    async def asynchronous():
        ran.append("async")

    with pytest.raises(ZeroDivisionError):
        async with atomic():
            await create(username="ann")
            await on_commit(functools.partial(ran.append, "before"))
            await on_commit(fail)
            await on_commit(functools.partial(ran.append, "behind"))
    assert ran == ["before"]
    assert await usernames() == ["ann"]


async def test_failing_async_callback():
    """An async callback that fails ends the row of async ones and raises; the commit stands."""
    ran = []

    async def fail():
        raise ZeroDivisionError

    async def asynchronous(name):
        ran.append(name)

    with pytest.raises(ZeroDivisionError):
        async with atomic():
            await create(username="ann")
            await on_commit(functools.partial(asynchronous, "before"))
            await on_commit(fail)
            await on_commit(functools.partial(asynchronous, "behind"))
            await on_commit(functools.partial(ran.append, "plain"))
    assert ran == ["plain", "before"]
    assert await usernames() == ["ann"]


async def test_callbacks_of_both_kinds_that_raise_one_error():
    """It is not its own context, in which contextlib's stacks would go round for ever."""
    error = ZeroDivisionError()

    async def fail():
        raise error

    def fail_plainly():
        raise error

    with pytest.raises(ZeroDivisionError) as caught:
        async with atomic():
            await on_commit(fail)
            await on_commit(fail_plainly)
    assert caught.value is error
    assert error.__context__ is not error


async def test_callbacks_of_both_kinds_that_fail():
    """An async callback that comes before a plain one, and fails, raises and names the other."""

    async def fail(error):
        raise error

    def fail_too():
        raise ZeroDivisionError

    with pytest.raises(LookupError) as failed:
        async with atomic():
            await create(username="ann")
            await on_commit(functools.partial(fail, LookupError()))
            await on_commit(fail_too)
    assert isinstance(failed.value.__context__, ZeroDivisionError)
    assert await usernames() == ["ann"]


async def test_robust_callbacks(caplog):
    """A robust callback that fails is logged, plain or async, and those behind it run."""
    ran = []

    def fail():
        raise ZeroDivisionError("plain")

    async def afail():
        raise ZeroDivisionError("async")

    async def asynchronous():
        ran.append("async")

    with caplog.at_level(logging.ERROR):
        async with atomic():
            await on_commit(fail, robust=True)
            await on_commit(afail, robust=True)
            await on_commit(asynchronous, robust=True)
            await on_commit(functools.partial(ran.append, "plain"))
    assert ran == ["plain", "async"]
    assert [(record.name, str(record.exc_info[1])) for record in caplog.records] == [
        ("django.db.backends.base", "plain"),
        ("ormbridge", "async"),
    ]


async def test_callback_may_open_a_block():
    """A callback runs outside of the block, so it may open one, even a durable one."""

    async def callback():
        async with atomic(durable=True):
            await create(username="bob")

    async with atomic():
        await create(username="ann")
        await on_commit(callback)
    assert await usernames() == ["ann", "bob"]


async def test_callback_that_runs_async_code_on_the_worker():
    """A plain callback may use async_to_sync, which runs calls on its own thread."""
    ran = []

    async def inside():
        return await sync_to_async(thread_name)(), await User.objects.acount()

    async with atomic():
        await create(username="ann")
        await on_commit(lambda: ran.append(async_to_sync(inside)()))
    assert ran == [("ormbridge-worker-1", 1)]


@pytest.mark.parametrize("block", [transaction.atomic, contextlib.nullcontext])
async def test_async_callback_of_a_function(block):
    """Outside of atomic() nobody awaits an async one; async_to_sync() around it does."""
    ran = []

    async def asynchronous(name):
        ran.append((name, thread_name()))

    def register_both():
        with block():
            transaction.on_commit(lambda: asynchronous("dropped"))
            assert ran == []
            transaction.on_commit(lambda: async_to_sync(asynchronous)("awaited"))

    with pytest.warns(RuntimeWarning, match="asynchronous' was never awaited"):
        await database_sync_to_async(register_both)()
    assert ran == [("awaited", main_thread())]


async def test_callback_registered_by_a_callback():
    """What an async callback gives to on_commit() in a block of its own runs as well."""
    ran = []

    async def second():
        ran.append("second")

    async def callback():
        async with atomic():
            await on_commit(second)
        ran.append("first")

    async with atomic():
        await on_commit(callback)
    assert ran == ["second", "first"]
