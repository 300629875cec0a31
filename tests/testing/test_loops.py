"""Event loops that synchronous code starts in a test, and pytest-django's own fixture."""

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.management import BaseCommand, call_command
from django.db import connection, transaction

from ormbridge import (
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
    stats,
)
from ormbridge.core import route as routes
from ormbridge.testing import one_transaction
from tests.support.ways import WAYS, count_and_close, iterating, make, names, streaming

# Event loops that synchronous code starts by itself.


async def make_in_atomic():
    async with atomic():
        await make("outer")
        async with atomic():
            await database_sync_to_async(User.objects.create)(username="inner")
    return await User.objects.acount()


async def make_in_pinned():
    async with pinned():
        await database_sync_to_async(User.objects.create)(username="pinned")
        return await User.objects.acount()


async def make_and_fail():
    try:
        async with atomic():
            await make("bad")
            raise ValueError("of the block")
    except ValueError:
        return await User.objects.acount()


async def at_once():
    return await asyncio.gather(*(database_sync_to_async(names)() for _ in range(3)))


WORK = {
    "a-methods": ([make, make], [None, None]),
    "atomic": ([make_in_atomic], [3]),
    "pinned": ([make_in_pinned], [2]),
    "a block that fails": ([make_and_fail], [1]),
    "stream": ([streaming], [["bob"]]),
    "calls at once": ([at_once], [[["bob"]] * 3]),
    "one after the other": ([make_in_atomic, make_in_pinned, iterating], [3, 4, None]),
}


class Command(BaseCommand):
    """A management command that starts an event loop for each part of its work."""

    stealth_options = ("work",)

    def handle(self, *args, work, **options):
        coroutines = [
            each(f"made by {number}") if each is make else each()
            for number, each in enumerate(WORK[work][0])
        ]
        self.results = [asyncio.run(each) for each in coroutines]


def run_command(work):
    command = Command()
    call_command(command, work=work)
    expected = WORK[work][1]
    return [
        result if wanted is not None else None
        for result, wanted in zip(command.results, expected, strict=True)
    ] == expected


HOW = {
    "bridge": database_sync_to_async(run_command),
    "bridge, thread_sensitive=False": database_sync_to_async(run_command, thread_sensitive=False),
    "sync_to_async": sync_to_async(run_command),
    "another thread": lambda work: asyncio.to_thread(run_command, work),
}


@pytest.mark.parametrize("work", WORK)
def test_command_in_a_synchronous_test(async_db, bob, work):
    """A management command with ``asyncio.run`` works in the transaction of the test."""
    assert run_command(work)
    assert connection.in_atomic_block
    assert "bob" in names()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("work", WORK)
async def test_command_in_an_async_test(async_db, bob, work, how):
    """So does one that an async test calls, from a worker and from another thread."""
    assert await HOW[how](work)
    assert "bob" in await database_sync_to_async(names)()


def test_loops_on_workers_of_loops(async_db, bob):
    """A loop on a worker that serves a loop on a worker finds a third one, and no fourth."""

    def deeper(depth):
        if depth:
            return asyncio.run(database_sync_to_async(deeper)(depth - 1))
        return names(), stats().threads

    assert deeper(3) == deeper(3) == (["bob"], 3)


async def test_loop_on_the_worker_of_a_block(async_db):
    """Where a call in a block starts a loop, that is outside of the block, and says so."""
    async with atomic():
        with pytest.raises(PoolTimeout, match="elsewhere it would not be in that block"):
            await database_sync_to_async(lambda: asyncio.run(make("ann")))()


def test_block_left_open_on_a_loop_of_its_own(transactional_db):
    """A block that is still open there is named, too, and rolled back."""
    block = atomic()

    async def leave_open():
        await block.__aenter__()
        await make("left")

    with transaction.atomic():
        with one_transaction("a test") as left:
            asyncio.run(database_sync_to_async(lambda: asyncio.run(leave_open()))())
        assert left[0].startswith("atomic() at test_loops.py:")
        transaction.set_rollback(True)
    assert User.objects.count() == 0


# pytest-django's own fixture, in a synchronous test.


@pytest.fixture
def ann(db):
    """Make a user from an event loop that a synchronous fixture starts."""
    asyncio.run(make("ann"))


@pytest.mark.parametrize("run", ["one", "two"])
@pytest.mark.parametrize("way", WAYS)
def test_loop_of_a_synchronous_test(db, ann, bob, way, run):
    """With ``db``, what a loop of the test and of its fixtures does is in the transaction."""
    assert asyncio.run(WAYS[way]()) == ["ann", "bob"]
    asyncio.run(make("eve"))
    assert names() == ["ann", "bob", "eve"]


@pytest.mark.django_db
@pytest.mark.parametrize("run", ["one", "two"])
def test_loop_of_a_synchronous_test_with_the_mark(run):
    """The mark is as good as the fixture."""
    asyncio.run(make("ann"))
    assert names() == ["ann"]


def test_threads_of_a_synchronous_test_have_their_connections(db, bob):
    """With ``db`` a thread may open a connection, as without the plugin."""
    assert asyncio.run(asyncio.to_thread(count_and_close)) == 0


async def test_async_test_with_db_is_left_alone(db):
    """An async test with ``db`` calls as without the plugin."""
    assert routes.current_route.get() is None


def test_both_fixtures_asked_for_in_a_synchronous_test(db, bob, request):
    """``async_db`` may be asked for later, by name."""
    request.getfixturevalue("async_db")
    assert asyncio.run(iterating()) == ["bob"]
    assert names() == ["bob"]
