"""pinned(): one worker for all calls of a block, without a transaction."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio

import pytest
from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async as channels_database_sync_to_async
from django.db import (
    DatabaseError,
    close_old_connections,
    connection,
    transaction,
)

from ormbridge import (
    LeaseClosed,
    atomic,
    database_sync_to_async,
    pinned,
    release,
    stats,
)
from ormbridge.core import route as routes
from ormbridge.core.process import end_pools
from tests.core.gate import GUARD
from tests.core.support import (
    leave_everything,
    no_worker_is_leased,
    thread_name,
    until,
    what_is_there,
)
from tests.settings import CHOICE
from tests.support.blocks import (
    create,
    elsewhere,
    ended,
    turns,
    usernames,
)
from tests.support.canceller import in_context

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


async def test_thread_sensitive_false_in_pinned(pool_settings):
    """In pinned(), which is no transaction, such a call runs on its worker if no other is free."""
    pool_settings(MAX_THREADS=1)
    async with pinned():
        await database_sync_to_async(thread_name)()
        call = database_sync_to_async(thread_name, thread_sensitive=False)
        assert await call() == "ormbridge-worker-1"


# pinned()


async def test_pinned_is_one_worker_for_everything(gate):
    """All calls in pinned() run on one worker, whoever else takes workers meanwhile."""
    other = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    async with pinned():
        names = {await database_sync_to_async(thread_name)()}
        gate.open.set()
        await other
        names |= {
            await database_sync_to_async(thread_name)(),
            await sync_to_async(thread_name)(),
            await channels_database_sync_to_async(thread_name)(),
            *await asyncio.gather(*(sync_to_async(thread_name)() for _ in range(3))),
        }
    assert names == {"ormbridge-worker-2"}
    await no_worker_is_leased()


async def test_pinned_takes_no_worker_before_the_first_call():
    """pinned() without a call takes no worker."""
    async with pinned() as nothing:
        assert nothing is None
        assert stats().threads == 0
    assert stats().threads == 0


async def test_pinned_keeps_its_worker_between_calls():
    """Between two calls in pinned() nobody else gets its worker."""
    async with pinned():
        await database_sync_to_async(thread_name)()
        assert await elsewhere(database_sync_to_async(thread_name)()) == "ormbridge-worker-2"
        assert "pinned() at test_pinned.py:" in stats().holders[0][1]


async def test_pinned_is_no_transaction():
    """What is written in pinned() is committed at once, and stays when the block fails."""
    with pytest.raises(ZeroDivisionError):
        async with pinned():
            await create(username="ann")
            assert await elsewhere(usernames()) == ["ann"]
            raise ZeroDivisionError
    assert await usernames() == ["ann"]


async def test_pinned_nested(pool_settings):
    """pinned() and atomic() in each other share one worker, even if there is only one."""
    pool_settings(MAX_THREADS=1)
    names = []

    async def note():
        names.append(await database_sync_to_async(thread_name)())

    async with pinned():
        async with pinned():
            await note()
        await note()
        async with atomic():
            await note()
            async with pinned():
                await note()
                async with atomic():
                    await note()
            await create(username="ann")
        await note()
    assert names == ["ormbridge-worker-1"] * 6
    assert await usernames() == ["ann"]


async def test_inner_pinned_leaves_the_worker_to_the_outer_one():
    """The end of an inner pinned() does not give the worker back."""
    async with pinned():
        async with pinned():
            await database_sync_to_async(thread_name)()
        assert len(stats().holders) == 1
    await no_worker_is_leased()


async def test_pinned_that_outlives_a_transaction_gives_its_worker_back():
    """Where a transaction began the lease, and ends in the block, the lease ends with the block."""
    set_autocommit = database_sync_to_async(transaction.set_autocommit)
    async with in_context():
        await set_autocommit(False)
        async with pinned():
            await set_autocommit(True)
            lease = routes.current_route.get().lease
            await until(lambda: lease.resting)
        await no_worker_is_leased()


async def test_pinned_decorator():
    """@pinned() runs a coroutine function on one worker."""

    @pinned()
    async def work():
        await release()
        holders.append(len(stats().holders))
        await database_sync_to_async(thread_name)()
        await release()
        holders.append(len(stats().holders))

    holders = []
    await work()
    assert holders == [0, 1]
    await no_worker_is_leased()


async def test_release_inside_pinned_does_nothing():
    """release() in pinned() leaves the worker with the block."""
    async with pinned():
        await database_sync_to_async(thread_name)()
        await release()
        await turns()
        assert len(stats().holders) == 1
        assert await elsewhere(database_sync_to_async(thread_name)()) == "ormbridge-worker-2"


async def test_call_in_pinned_after_the_pool_has_ended():
    """A call in a pinned() whose worker has ended is refused: another one has another session."""
    async with pinned():
        await database_sync_to_async(thread_name)()
        await asyncio.to_thread(end_pools, GUARD)
        with pytest.raises(LeaseClosed, match=r"in pinned\(\) at .*, whose worker is gone"):
            await database_sync_to_async(thread_name)()
    assert await database_sync_to_async(thread_name)() == "ormbridge-worker-1"


async def test_pinned_cancelled_during_a_call(gate):
    """A pinned() whose task is cancelled during a call gives its worker back after the call."""

    async def work():
        async with pinned():
            await database_sync_to_async(gate)()

    task = asyncio.create_task(work())
    await gate.entered()
    task.cancel()
    await ended(task)
    assert task.cancelled()
    assert len(stats().holders) == 1
    gate.open.set()
    await until(lambda: not stats().holders)


async def test_call_made_before_the_end_of_pinned_runs_on_its_worker(gate):
    """Calls in line as pinned() ends still run there."""
    async with pinned():
        calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(2)]
        await gate.entered()
    gate.open.set()
    assert await asyncio.gather(*calls) == ["ormbridge-worker-1"] * 2


async def test_temporary_table():
    """A temporary table lives as long as pinned(), in every kind of call."""

    def execute(sql):
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if sql.startswith("SELECT") else None

    async with pinned():
        await database_sync_to_async(execute)("CREATE TEMPORARY TABLE notes (body varchar(9))")
        await sync_to_async(execute)("INSERT INTO notes VALUES ('ann')")
        async with atomic():
            assert list(await sync_to_async(execute)("SELECT body FROM notes")) == [("ann",)]
        with pytest.raises(DatabaseError):
            await elsewhere(database_sync_to_async(execute)("SELECT body FROM notes"))
        await database_sync_to_async(execute)("DROP TABLE notes")


@pytest.mark.skipif(CHOICE == "sqlite", reason="SQLite has no session variables")
async def test_session_variable():
    """What SET changed is there in every later call of pinned(), and nowhere else."""
    change, show = {
        "postgresql": ("SET application_name = 'ours'", "SHOW application_name"),
        "mariadb": ("SET @ours = 'ours'", "SELECT @ours"),
    }[CHOICE]

    def execute(sql):
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone()[0] if sql == show else None

    async with pinned():
        await database_sync_to_async(execute)(change)
        await database_sync_to_async(close_old_connections)()
        assert await sync_to_async(execute)(show) == "ours"
        assert await elsewhere(database_sync_to_async(execute)(show)) != "ours"


@pytest.mark.skipif(CHOICE == "sqlite", reason="SQLite has no advisory locks")
async def test_advisory_lock():
    """An advisory lock that pinned() took is released by the connection that took it."""
    take, give = {
        "postgresql": ("SELECT pg_try_advisory_lock(4)", "SELECT pg_advisory_unlock(4)"),
        "mariadb": ("SELECT GET_LOCK('four', 0)", "SELECT RELEASE_LOCK('four')"),
    }[CHOICE]

    @database_sync_to_async
    def ask(sql):
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return bool(cursor.fetchone()[0])

    async with pinned():
        assert await ask(take)
        assert not await elsewhere(ask(take))
        assert await ask(give)


@pytest.mark.skipif(CHOICE != "postgresql", reason="only PostgreSQL has LISTEN")
async def test_listen():
    """LISTEN in one call of pinned() is heard in another."""

    def listen():
        with connection.cursor() as cursor:
            cursor.execute("LISTEN news")

    def notify():
        with connection.cursor() as cursor:
            cursor.execute("NOTIFY news, 'hello'")

    def hear():
        return [
            each.payload for each in connection.connection.notifies(timeout=GUARD, stop_after=1)
        ]

    def unlisten():
        with connection.cursor() as cursor:
            cursor.execute("UNLISTEN *")

    async with pinned():
        await database_sync_to_async(listen)()
        await elsewhere(database_sync_to_async(notify)())
        assert await database_sync_to_async(hear)() == ["hello"]
        await database_sync_to_async(unlisten)()


@pytest.mark.parametrize("age", [0, 60, None])
async def test_state_of_djangos_object_ends_with_the_lease(pool_settings, connection_settings, age):
    """Statement wrappers, the debug cursor and the log of one call are not there in the next."""
    pool_settings(MAX_THREADS=1)
    connection_settings(CONN_MAX_AGE=age)
    before = await database_sync_to_async(what_is_there)()
    assert await database_sync_to_async(leave_everything)() == 1
    assert await database_sync_to_async(what_is_there)() == before
    # Within a lease it stays.
    async with pinned():
        await database_sync_to_async(leave_everything)()
        assert (await database_sync_to_async(what_is_there)())[1:] == [True, 1]
    assert await database_sync_to_async(what_is_there)() == before
