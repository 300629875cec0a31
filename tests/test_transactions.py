"""atomic() and pinned(): what is inside, how they end, and what cancellation does to them."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import contextlib
import functools
import gc
import inspect
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.db import database_sync_to_async as channels_database_sync_to_async
from django.contrib.auth.models import Group, Permission, User
from django.db import (
    DatabaseError,
    IntegrityError,
    close_old_connections,
    connection,
    connections,
    models,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.signals import post_save
from django.db.transaction import TransactionManagementError
from django.utils.connection import ConnectionDoesNotExist

from ormbridge import (
    LeaseClosed,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
    release,
    stats,
)
from tests.blocks import (
    assert_whole,
    create,
    elsewhere,
    ended,
    first,
    in_atomic_block,
    thread_name,
    turns,
    usernames,
)
from tests.gate import GUARD, Gate
from tests.settings import CHOICE
from tests.test_call import until

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@pytest.fixture(autouse=True)
def whole(own_pool):
    """See after each test that no lease and no transaction was left open."""
    yield
    assert_whole()


@pytest.fixture
def other_database(connection_settings, tmp_path):
    """Make "other" a database that can be written beside "default".

    A second connection to the same file would wait for the first one's transaction on SQLite.
    """
    if CHOICE == "sqlite":
        connection_settings("other", NAME=tmp_path / "other.sqlite3")

        def create_table():
            with connections["other"].schema_editor() as editor:
                editor.create_model(User)
            connections["other"].close()

        with ThreadPoolExecutor(1) as executor:
            executor.submit(create_table).result(GUARD)


@pytest.fixture
def parallel_transactions(connection_settings):
    """Have a transaction of SQLite take its lock with the first statement, not with BEGIN."""
    if CHOICE == "sqlite":
        options = connections.settings["default"]["OPTIONS"]
        connection_settings(OPTIONS={**options, "transaction_mode": "DEFERRED"})


async def no_worker_is_leased():
    await until(lambda: not stats().holders)


@database_sync_to_async
def usernames_of_other():
    return sorted(User.objects.using("other").values_list("username", flat=True))


# What is inside


async def test_block_commits():
    """What a block wrote is seen by others once it has ended, and not before."""
    async with atomic():
        await create(username="ann")
        await User.objects.acreate(username="bob")
        assert await elsewhere(usernames()) == []
    assert await usernames() == ["ann", "bob"]


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, GeneratorExit])
async def test_block_rolls_back_on_any_exception(error):
    """A block that raises, be it no Exception, is rolled back, and its error goes on."""
    with pytest.raises(error):
        async with atomic():
            await create(username="ann")
            await User.objects.acreate(username="bob")
            raise error
    assert await usernames() == []


async def test_all_kinds_of_calls_run_on_one_worker_in_the_transaction():
    """The bridge, channels.db, sync_to_async and the a-methods share the block's connection."""

    def look():
        return thread_name(), connection.in_atomic_block

    async with atomic():
        seen = {
            await database_sync_to_async(look)(),
            await channels_database_sync_to_async(look)(),
            await sync_to_async(look)(),
            await asyncio.create_task(database_sync_to_async(look)()),
            await asyncio.wait_for(database_sync_to_async(look)(), GUARD),
            await asyncio.shield(sync_to_async(look)()),
        }
    assert seen == {("ormbridge-worker-1", True)}


@contextlib.asynccontextmanager
async def watched_transaction():
    """Enter a block that is rolled back, and see that all of its statements run inside it."""
    statements = []

    def watch(execute, sql, params, many, context):
        statements.append((thread_name(), context["connection"].in_atomic_block))
        return execute(sql, params, many, context)

    with pytest.raises(ZeroDivisionError):
        async with atomic():
            await database_sync_to_async(lambda: connection.execute_wrappers.append(watch))()
            yield
            await database_sync_to_async(lambda: connection.execute_wrappers.remove(watch))()
            raise ZeroDivisionError
    assert set(statements) == {("ormbridge-worker-1", True)}
    assert stats().threads == 1
    assert await usernames() == []


async def test_a_methods_of_querysets():
    """Django's a-methods of querysets run in the transaction, and are rolled back with it."""
    async with watched_transaction():
        await User.objects.acreate(username="ann")
        await User.objects.abulk_create([User(username="bob"), User(username="cyd")])
        await User.objects.aget_or_create(username="dan")
        await User.objects.aupdate_or_create(username="eve", defaults={"first_name": "Eve"})
        assert await User.objects.filter(username="bob").aupdate(first_name="Bob") == 1
        assert await User.objects.filter(username="cyd").adelete() == (1, {"auth.User": 1})
        assert (await User.objects.aget(first_name="Bob")).username == "bob"
        assert await User.objects.acount() == 4
        assert await User.objects.filter(username="cyd").aexists() is False
        assert sorted(await User.objects.ain_bulk(field_name="username")) == [
            "ann",
            "bob",
            "dan",
            "eve",
        ]
        assert (await User.objects.aaggregate(n=models.Count("id")))["n"] == 4


async def test_a_methods_of_models():
    """asave(), adelete() and arefresh_from_db() run in the transaction."""
    async with watched_transaction():
        ann = User(username="ann")
        await ann.asave()
        await User.objects.aupdate(first_name="Ann")
        await ann.arefresh_from_db()
        assert ann.first_name == "Ann"
        await ann.adelete()
        assert await User.objects.acount() == 0


async def test_iteration():
    """``async for`` over a queryset and over aiterator() reads in the transaction."""
    async with watched_transaction():
        await User.objects.abulk_create(User(username=f"user {n}") for n in range(7))
        users = User.objects.order_by("id")
        assert len([user async for user in users]) == 7
        assert len([user async for user in users.aiterator(chunk_size=2)]) == 7


async def test_aiterator_left_early_then_commit():
    """An iteration that is left half-way holds up neither the commit nor the lease."""
    async with atomic():
        await User.objects.abulk_create(User(username=f"user {n}") for n in range(7))
        rows = User.objects.order_by("id").aiterator(chunk_size=2)
        async for user in rows:
            assert user.username == "user 0"
            break
        await rows.aclose()
        del rows
    assert len(await usernames()) == 7


@pytest.mark.parametrize("block", [atomic, pinned])
async def test_iteration_that_goes_on_after_the_block(block):
    """aiterator() begun in a block raises as it goes on behind it, and never ends early."""
    await User.objects.abulk_create(User(username=f"{number:02}") for number in range(30))
    names = []
    async with block():
        rows = User.objects.order_by("username").aiterator(chunk_size=10)
        names.append((await anext(rows)).username)
    with pytest.raises(LeaseClosed, match=r"over auth\.User was closed"):
        async for user in rows:
            names.append(user.username)  # noqa: PERF401 # rows before the error count
    assert names == [f"{number:02}" for number in range(10)]


async def test_related_managers_and_prefetch():
    """Related managers and prefetch_related read and write in the transaction."""
    async with watched_transaction():
        ann = await User.objects.acreate(username="ann")
        staff = await Group.objects.acreate(name="staff")
        await ann.groups.aadd(staff)
        await ann.groups.acreate(name="editors")
        await staff.user_set.acreate(username="bob")
        users = User.objects.prefetch_related("groups").order_by("username")
        found = [(user.username, sorted(g.name for g in user.groups.all())) async for user in users]
        assert found == [("ann", ["editors", "staff"]), ("bob", ["staff"])]
        await models.aprefetch_related_objects([staff], "user_set")
        assert len(staff.user_set.all()) == 2
        await ann.groups.aclear()
        assert await ann.groups.acount() == 0
    assert await database_sync_to_async(Group.objects.count)() == 0


async def test_signals():
    """Receivers of a signal, plain and async, write in the transaction that sends it."""
    ran = []

    def plain(instance, **kwargs):
        if instance.username == "ann":
            ran.append((thread_name(), connection.in_atomic_block))
            User.objects.create(username="by plain")

    async def asynchronous(instance, **kwargs):
        if instance.username == "ann":
            await User.objects.acreate(username="by async")

    post_save.connect(plain, sender=User)
    post_save.connect(asynchronous, sender=User)
    try:
        async with watched_transaction():
            await User.objects.acreate(username="ann")
            assert await usernames() == ["ann", "by async", "by plain"]
            await User.objects.all().adelete()
            ann = User(username="ann")
            await post_save.asend(User, instance=ann)
            assert await usernames() == ["by async", "by plain"]
    finally:
        post_save.disconnect(plain, sender=User)
        post_save.disconnect(asynchronous, sender=User)
    assert ran == [("ormbridge-worker-1", True)] * 2


async def test_select_for_update():
    """A row that one block has locked is changed by another only after it has ended."""
    await create(username="ann", first_name="0")

    @atomic()
    async def add_one():
        ann = await User.objects.select_for_update().aget(username="ann")
        ann.first_name = str(int(ann.first_name) + 1)
        await ann.asave()

    await asyncio.gather(*(add_one() for _ in range(8)))
    assert await database_sync_to_async(lambda: User.objects.get().first_name)() == "8"


async def test_close_old_connections_inside_closes_nothing(connection_settings):
    """Cleaning up inside a block, by whoever it is, leaves the transaction alone."""
    connection_settings(CONN_MAX_AGE=0)
    async with atomic():
        await create(username="ann")
        await channels_database_sync_to_async(User.objects.create)(username="bob")
        await sync_to_async(close_old_connections)()
        await User.objects.acreate(username="cyd")
    assert await usernames() == ["ann", "bob", "cyd"]


async def test_empty_block():
    """A block without a call begins and ends."""
    async with atomic() as nothing:
        assert nothing is None
    assert stats().calls == 2


# using, savepoint, durable


async def test_using(other_database):
    """A block of another alias opens a transaction there, and nowhere else."""

    def open_transactions():
        return [alias for alias in connections if connections[alias].in_atomic_block]

    with pytest.raises(ZeroDivisionError):
        async with atomic(using="other"):
            assert await database_sync_to_async(open_transactions)() == ["other"]
            await User.objects.using("other").acreate(username="ann")
            raise ZeroDivisionError
    async with atomic("other"):
        await User.objects.using("other").acreate(username="bob")
    assert await usernames_of_other() == ["bob"]


async def test_several_aliases(other_database):
    """Blocks of two aliases in each other are on one worker, and end each by itself, as in Django.

    The inner one commits as it ends; what the outer one does then is its own affair.
    """
    with pytest.raises(ZeroDivisionError):
        async with atomic():
            outer = await database_sync_to_async(thread_name)()
            await create(username="ann")
            async with atomic(using="other"):
                assert await sync_to_async(thread_name)() == outer
                await User.objects.using("other").acreate(username="bob")
            with pytest.raises(LookupError):
                async with atomic(using="other"):
                    await User.objects.using("other").acreate(username="cyd")
                    raise LookupError
            raise ZeroDivisionError
    assert "ann" not in await usernames()
    assert await usernames_of_other() == ["bob"]


async def test_nested_block_is_a_savepoint():
    """A nested block that fails takes back what it did, and no more."""
    async with atomic():
        await create(username="ann")
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await create(username="bob")
                raise ZeroDivisionError
        async with atomic():
            await create(username="cyd")
            async with atomic():
                await create(username="dan")
    assert await usernames() == ["ann", "cyd", "dan"]


async def test_nested_block_is_taken_back_with_the_outer_one():
    """What a nested block has committed goes when the outer one fails."""
    with pytest.raises(ZeroDivisionError):
        async with atomic():
            async with atomic():
                await create(username="ann")
            raise ZeroDivisionError
    assert await usernames() == []


async def test_database_error_is_caught_outside_of_a_nested_block():
    """After an error of the database in a nested block, the outer one goes on."""
    async with atomic():
        await create(username="ann")
        with pytest.raises(IntegrityError):
            async with atomic():
                await create(username="ann")
        await create(username="bob")
    assert await usernames() == ["ann", "bob"]


async def test_without_savepoint_the_outer_block_fails():
    """A nested block without a savepoint that fails leaves the outer one good for rollback only."""
    with pytest.raises(TransactionManagementError):
        async with atomic():
            await create(username="ann")
            with pytest.raises(ZeroDivisionError):
                async with atomic(savepoint=False):
                    raise ZeroDivisionError
            await create(username="bob")
    assert await usernames() == []


async def test_without_savepoint_no_savepoint_is_made():
    """``savepoint=False`` sends no SAVEPOINT."""
    async with atomic():
        async with atomic(savepoint=False):
            assert await database_sync_to_async(lambda: connection.savepoint_ids)() == [None]


async def test_durable():
    """A durable block commits, and refuses to be nested, which costs the outer block nothing."""
    async with atomic(durable=True):
        await create(username="ann")
        with pytest.raises(RuntimeError, match="A durable atomic block cannot be nested"):
            async with atomic(durable=True):
                raise AssertionError("must not be entered")
        await create(username="bob")
    assert await usernames() == ["ann", "bob"]


async def test_durable_in_pinned():
    """A durable block may be in a pinned() one: that is no transaction."""
    async with pinned():
        async with atomic(durable=True):
            await create(username="ann")
    assert await usernames() == ["ann"]


async def test_unknown_alias():
    """An alias that does not exist raises Django's error, and leaves nothing behind."""
    with pytest.raises(ConnectionDoesNotExist, match="nowhere"):
        async with atomic(using="nowhere"):
            raise AssertionError("must not be entered")


async def test_synchronous_atomic_inside():
    """Django's own atomic() in a function called in the block makes a savepoint of it."""

    def fail():
        with transaction.atomic():
            User.objects.create(username="bob")
            raise ZeroDivisionError

    async with atomic():
        await create(username="ann")
        with pytest.raises(ZeroDivisionError):
            await database_sync_to_async(fail)()
    assert await usernames() == ["ann"]


async def test_set_rollback():
    """A block that was marked for rollback raises nothing, and is rolled back."""
    async with atomic():
        await create(username="ann")
        await database_sync_to_async(transaction.set_rollback)(True)
    assert await usernames() == []


# The decorator


@pytest.mark.parametrize("decorate", [atomic, atomic(), atomic(durable=True)])
async def test_decorator(decorate):
    """A decorated coroutine function takes and returns what it did, in a transaction."""

    @decorate
    async def register(username, *, fail=False):
        """Register somebody."""
        await create(username=username)
        if fail:
            raise ZeroDivisionError
        return await database_sync_to_async(in_atomic_block)()

    assert await register("ann") is True
    with pytest.raises(ZeroDivisionError):
        await register("bob", fail=True)
    assert await usernames() == ["ann"]
    assert (register.__name__, register.__doc__) == ("register", "Register somebody.")
    assert inspect.iscoroutinefunction(register)


async def test_decorated_method_with_using(other_database):
    """A method can be decorated, and the alias given."""

    class Service:
        @atomic(using="other")
        async def register(self, username):
            await User.objects.using("other").acreate(username=username)
            return self

    service = Service()
    assert await service.register("ann") is service
    assert await usernames_of_other() == ["ann"]


async def test_decorated_function_may_call_itself():
    """A recursive function nests its blocks."""

    @atomic()
    async def descend(depth):
        depths.append(await database_sync_to_async(lambda: len(connection.atomic_blocks))())
        if depth:
            await descend(depth - 1)

    depths = []
    await descend(3)
    assert depths == [1, 2, 3, 4]


@pytest.mark.parametrize("decorate", [atomic, atomic(), pinned()])
def test_decorator_refuses_what_is_no_coroutine_function(decorate):
    """A synchronous function and an async generator cannot be decorated."""

    async def generator():
        yield

    for func in (len, lambda: None, generator):
        with pytest.raises(TypeError, match="takes a coroutine function"):
            decorate(func)


async def test_one_object_in_many_tasks(parallel_transactions):
    """What atomic() returned may be entered by many tasks at one time; each leaves its own."""
    committed = []
    everywhere = atomic()
    inside = asyncio.Barrier(4)

    async def work(number):
        async with everywhere:
            await on_commit(functools.partial(committed.append, number))
            await inside.wait()
            if number % 2:
                raise LookupError
            return await database_sync_to_async(lambda: len(connection.atomic_blocks))()

    found = await asyncio.gather(*(work(n) for n in range(4)), return_exceptions=True)
    assert [each if each == 1 else type(each) for each in found] == [1, LookupError] * 2
    assert sorted(committed) == [0, 2]


async def test_one_object_nested_in_itself():
    """One atomic() object can be entered again inside itself: the innermost is left first."""
    block = atomic()
    async with block:
        await create(username="ann")
        with pytest.raises(ZeroDivisionError):
            async with block:
                await create(username="bob")
                raise ZeroDivisionError
        await create(username="cyd")
    assert await usernames() == ["ann", "cyd"]


# on_commit


async def on_commit(callback, **options):
    """Register *callback* in the transaction of the block."""
    await database_sync_to_async(transaction.on_commit)(callback, **options)


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


# The end of a block


async def test_commit_that_fails():
    """A commit that the database refuses raises its error; nothing is left of the block."""
    with pytest.raises(IntegrityError):
        async with atomic():
            await create(username="ann")
            # Checked at the commit, by databases whose constraints may be deferred.
            await Permission.objects.acreate(name="none", codename="none", content_type_id=999_999)
    assert await usernames() == []


async def test_call_made_before_the_end_is_inside():
    """A call that is in line as the block begins to end still runs in its transaction."""
    async with atomic():
        task = asyncio.create_task(create(username="ann"))
        await asyncio.sleep(0)
    await ended(task)
    assert task.exception() is None
    assert await usernames() == ["ann"]


async def test_worker_is_free_before_the_caller_goes_on(pool_settings):
    """After a block, the next call finds the same worker, and the same connection."""
    pool_settings(MAX_THREADS=2)
    names = []
    for _ in range(10):
        async with atomic():
            pass
        names.append(await database_sync_to_async(thread_name)())
    assert names == ["ormbridge-worker-1"] * 10
    assert stats().threads == 1


async def test_connection_lost_in_a_block():
    """A connection that is gone at the end of its block raises; the next block has a new one."""
    with pytest.raises(DatabaseError):
        async with atomic():
            await create(username="ann")
            await database_sync_to_async(lambda: connection.connection.close())()
            await create(username="bob")
    async with atomic():
        await create(username="cyd")
    assert await usernames() == ["cyd"]


async def test_release_inside_does_nothing():
    """release() in a block leaves it its worker, its transaction and its session."""
    async with atomic():
        await create(username="ann")
        await release()
        assert len(stats().holders) == 1
        assert await database_sync_to_async(in_atomic_block)()
        await create(username="bob")
    assert await usernames() == ["ann", "bob"]


async def test_asyncio_run_on_the_worker_of_a_block_is_refused():
    """A loop that a function starts inside the block is refused at once: it cannot join."""

    def run_a_loop():
        return asyncio.run(database_sync_to_async(thread_name)())

    for block in (atomic(), pinned()):
        async with block:
            await database_sync_to_async(thread_name)()
            with pytest.raises(PoolTimeout, match=r"Use async_to_sync in place of asyncio\.run"):
                await database_sync_to_async(run_a_loop)()


async def test_async_to_sync_in_a_block_is_inside():
    """Code below async_to_sync in the block runs on its worker, and its blocks are savepoints."""

    async def below():
        async with atomic():
            await create(username="ann")
            depth = await sync_to_async(lambda: len(connection.atomic_blocks))()
            assert depth == 2
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await User.objects.acreate(username="bob")
                raise ZeroDivisionError
        return await sync_to_async(thread_name)()

    async with atomic():
        assert await database_sync_to_async(async_to_sync(below))() == "ormbridge-worker-1"
        await create(username="cyd")
        assert await elsewhere(usernames()) == []
    assert await usernames() == ["ann", "cyd"]


# thread_sensitive=False


async def test_thread_sensitive_false_takes_another_worker():
    """A call with thread_sensitive=False in a block runs outside of it, on a free worker."""
    async with atomic():
        await create(username="ann")
        names = database_sync_to_async(
            lambda: (thread_name(), list(User.objects.all())), thread_sensitive=False
        )
        assert await names() == ("ormbridge-worker-2", [])


async def test_thread_sensitive_false_does_not_join_the_transaction(pool_settings):
    """Where no other worker is free, a call with thread_sensitive=False raises at once."""
    pool_settings(MAX_THREADS=1)
    async with atomic():
        with pytest.raises(PoolTimeout, match="Leave thread_sensitive out to join"):
            await database_sync_to_async(thread_name, thread_sensitive=False)()


async def test_thread_sensitive_false_in_pinned(pool_settings):
    """In pinned(), which is no transaction, such a call runs on its worker if no other is free."""
    pool_settings(MAX_THREADS=1)
    async with pinned():
        await database_sync_to_async(thread_name)()
        call = database_sync_to_async(thread_name, thread_sensitive=False)
        assert await call() == "ormbridge-worker-1"


# Cancellation


async def cancel(task):
    """Cancel *task*, and see that it waits on."""
    task.cancel()
    await turns()
    assert not task.done()


async def test_cancelled_between_calls_rolls_back():
    """A task that is cancelled while it waits for something else in a block is rolled back."""
    inside = asyncio.Event()

    async def work():
        async with atomic():
            await create(username="ann")
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await ended(task)
    assert task.cancelled()
    assert await usernames() == []


async def test_cancelled_during_a_call_rolls_back_after_it(gate):
    """A task cancelled during a call of its block ends when that has, rolled back."""

    def slow():
        User.objects.create(username="bob")
        gate()
        User.objects.create(username="cyd")

    async def work():
        async with atomic():
            await create(username="ann")
            await database_sync_to_async(slow)()

    task = asyncio.create_task(work())
    await gate.entered()
    await cancel(task)
    await cancel(task)
    gate.open.set()
    await ended(task)
    assert task.cancelled()
    assert await usernames() == []


async def test_block_that_swallows_its_cancellation_goes_on(gate):
    """A block that handles the cancellation itself goes on, in its transaction."""

    async def work():
        async with atomic():
            await create(username="ann")
            with contextlib.suppress(asyncio.CancelledError):
                await database_sync_to_async(gate)()
            await create(username="bob")

    task = asyncio.create_task(work())
    await gate.entered()
    task.cancel()
    await asyncio.sleep(0)
    gate.open.set()
    await ended(task)
    assert task.exception() is None
    assert await usernames() == ["ann", "bob"]


async def test_enter_cancelled_before_it_starts_never_starts(gate, pool_settings):
    """A block whose entering waits for a worker and is cancelled never begins, and leaves the line.

    It is given up at once: nothing has to be undone.
    """
    pool_settings(MAX_THREADS=1)
    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()

    async def work():
        async with atomic():
            raise AssertionError("must not be entered")

    with mock.patch.object(transaction.Atomic, "__enter__") as enter:
        task = asyncio.create_task(work())
        await until(lambda: stats().waiting == 1)
        task.cancel()
        await ended(task)
        assert task.cancelled()
        assert stats().waiting == 0
        gate.open.set()
        await holder
        await until(lambda: stats().idle == 1)
        assert enter.call_count == 0


@pytest.mark.parametrize("times", [1, 2])
async def test_enter_cancelled_while_it_runs_is_undone(gate, times):
    """A block whose entering is cancelled while it runs is rolled back before the task ends."""
    events = []

    async def work():
        async with atomic():
            raise AssertionError("must not be entered")

    with (
        first(transaction.Atomic, "__enter__", gate),
        first(transaction.Atomic, "__exit__", lambda: events.append("undone")),
    ):
        task = asyncio.create_task(work())
        await gate.entered()
        for _ in range(times):
            await cancel(task)
        gate.open.set()
        await ended(task)
    assert task.cancelled()
    assert events == ["undone"]
    assert stats().holders == ()


async def test_nested_enter_cancelled_while_it_runs_is_undone(gate):
    """A nested block whose entering is cancelled leaves the outer one as it was."""

    async def work():
        async with atomic():
            await create(username="ann")
            with first(transaction.Atomic, "__enter__", gate):
                with contextlib.suppress(asyncio.CancelledError):
                    async with atomic():
                        raise AssertionError("must not be entered")
            depth = await database_sync_to_async(lambda: len(connection.atomic_blocks))()
            await create(username="bob")
            return depth

    task = asyncio.create_task(work())
    await gate.entered()
    await cancel(task)
    gate.open.set()
    await ended(task)
    assert task.result() == 1
    assert await usernames() == ["ann", "bob"]


async def test_enter_that_fails_while_it_is_cancelled(gate):
    """A cancelled entering that fails by itself has nothing to undo; the task is cancelled."""

    def fail():
        gate()
        raise DatabaseError("no")

    async def work():
        async with atomic():
            raise AssertionError("must not be entered")

    with first(transaction.Atomic, "__enter__", fail):
        task = asyncio.create_task(work())
        await gate.entered()
        await cancel(task)
        gate.open.set()
        await ended(task)
    assert task.cancelled()


@pytest.mark.parametrize("times", [1, 2])
async def test_cancelled_during_commit(gate, times):
    """A cancellation during COMMIT goes on when the commit stands, callbacks included."""
    ran = []

    async def callback():
        await asyncio.sleep(0)
        ran.append("async")

    async def work():
        async with atomic():
            await create(username="ann")
            await on_commit(callback)
            await on_commit(functools.partial(ran.append, "plain"))

    with first(BaseDatabaseWrapper, "_commit", gate):
        task = asyncio.create_task(work())
        await gate.entered()
        for _ in range(times):
            await cancel(task)
        gate.open.set()
        await ended(task)
    assert task.cancelled()
    assert ran == ["plain", "async"]
    assert await usernames() == ["ann"]


async def test_cancelled_during_a_commit_that_fails(gate):
    """A cancellation during a COMMIT that fails goes on, and names the failure as its cause."""

    def fail():
        gate()
        raise DatabaseError("refused")

    causes = []

    async def work():
        try:
            async with atomic():
                await create(username="ann")
        except asyncio.CancelledError as error:
            causes.append(str(error.__cause__))
            raise

    with first(BaseDatabaseWrapper, "_commit", fail):
        task = asyncio.create_task(work())
        await gate.entered()
        await cancel(task)
        gate.open.set()
        await ended(task)
    assert task.cancelled()
    assert causes == ["refused"]
    assert await usernames() == []


async def test_cancelled_during_rollback(gate):
    """A cancellation during ROLLBACK goes on when that is done."""

    async def work():
        async with atomic():
            await create(username="ann")
            raise ZeroDivisionError

    with first(BaseDatabaseWrapper, "_rollback", gate):
        task = asyncio.create_task(work())
        await gate.entered()
        await cancel(task)
        gate.open.set()
        await ended(task)
    assert task.cancelled()
    assert await usernames() == []


async def test_cancelled_while_the_end_waits_in_line(gate):
    """The end of a block cannot be cancelled while it waits behind a call either."""

    async def work():
        async with atomic():
            await create(username="ann")
            asyncio.create_task(database_sync_to_async(gate)())  # noqa: RUF006 - the gate's end
            await asyncio.sleep(0)

    task = asyncio.create_task(work())
    await gate.entered()
    await cancel(task)
    gate.open.set()
    await ended(task)
    assert task.cancelled()
    assert await usernames() == ["ann"]


async def test_cancelled_in_an_async_callback():
    """A cancellation while an async callback runs reaches it, and ends the row."""
    inside = asyncio.Event()
    ran = []

    async def callback():
        inside.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ran.append("cancelled")
            raise

    async def behind():
        ran.append("behind")

    async def work():
        async with atomic():
            await create(username="ann")
            await on_commit(callback)
            await on_commit(behind)

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    await ended(task)
    assert task.cancelled()
    assert ran == ["cancelled"]
    assert await usernames() == ["ann"]


async def test_timeout_around_a_block(gate):
    """asyncio.timeout() around a block rolls it back and raises TimeoutError."""

    async def work():
        async with asyncio.timeout(None) as timeout:
            async with atomic():
                await create(username="ann")
                timeout.reschedule(0)
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(work(), GUARD)
    assert await usernames() == []


async def test_timeout_inside_a_block():
    """asyncio.timeout() inside a block is handled there, and the block commits."""
    async with atomic():
        await create(username="ann")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        await create(username="bob")
    assert await usernames() == ["ann", "bob"]


async def test_timeout_during_commit(gate):
    """A timeout that comes during COMMIT raises TimeoutError when the commit stands."""

    async def work():
        async with asyncio.timeout(None) as timeout:
            async with atomic():
                await create(username="ann")
                asyncio.get_running_loop().call_soon(timeout.reschedule, 0)

    with first(BaseDatabaseWrapper, "_commit", gate):
        task = asyncio.create_task(work())
        await gate.entered()
        await turns()
        gate.open.set()
        await ended(task)
    assert isinstance(task.exception(), TimeoutError)
    assert await usernames() == ["ann"]


async def test_timeout_of_an_enter_that_waits_for_a_worker(gate, pool_settings):
    """asyncio.timeout() ends the wait for a worker."""
    pool_settings(MAX_THREADS=1)
    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            async with atomic():
                raise AssertionError("must not be entered")
    gate.open.set()
    await holder


async def test_enter_waits_at_most_timeout_for_a_worker(gate, pool_settings):
    """A block that has no worker within TIMEOUT raises PoolTimeout; nothing is left of it."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.01)
    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    with pytest.raises(PoolTimeout, match="1 of 1 leased"):
        async with atomic():
            raise AssertionError("must not be entered")
    gate.open.set()
    await holder


async def test_failing_task_group_rolls_the_blocks_of_its_tasks_back(parallel_transactions):
    """When one task of a TaskGroup fails, the blocks of the others are rolled back."""
    inside = asyncio.Event()

    @atomic()
    async def stay():
        await create(username="ann")
        inside.set()
        await asyncio.Event().wait()

    async def fail():
        await inside.wait()
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(stay())
            group.create_task(fail())
    assert await usernames() == []


async def test_anyio_cancel_scope():
    """A cancel scope of anyio, which cancels again and again, rolls the block back."""
    anyio = pytest.importorskip("anyio")
    with anyio.CancelScope() as scope:
        async with atomic():
            await create(username="ann")
            scope.cancel()
            await create(username="bob")
    assert scope.cancelled_caught
    assert await usernames() == []


async def test_anyio_cancel_scope_during_commit(gate):
    """A cancel scope of anyio that is cancelled during COMMIT lets it stand."""
    anyio = pytest.importorskip("anyio")
    scopes = []

    async def work():
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            async with atomic():
                await create(username="ann")
        return scope.cancelled_caught

    with first(BaseDatabaseWrapper, "_commit", gate):
        task = asyncio.create_task(work())
        await gate.entered()
        scopes[0].cancel()
        await turns()
        assert not task.done()
        gate.open.set()
        await ended(task)
    assert task.result() is True
    assert await usernames() == ["ann"]


# The end of a loop


def test_loop_that_ends_rolls_an_open_block_back():
    """asyncio.run() that returns while a task is in a block rolls it back before it does."""

    async def main():
        inside = asyncio.Event()

        async def work():
            async with atomic():
                await create(username="ann")
                inside.set()
                await asyncio.Event().wait()

        tasks.append(asyncio.create_task(work()))
        await inside.wait()

    tasks = []
    asyncio.run(main())
    assert tasks[0].cancelled()
    assert stats().holders == ()
    assert User.objects.count() == 0


def test_loop_that_ends_during_commit_lets_it_stand():
    """asyncio.run() that returns while a task commits waits for the commit."""
    gate = Gate()

    async def main():
        async def work():
            async with atomic():
                await create(username="ann")

        tasks.append(asyncio.create_task(work()))
        await gate.entered()
        # Opened when the loop's end has cancelled the task.
        asyncio.create_task(open_when_cancelled())  # noqa: RUF006 - the loop's end awaits it

    async def open_when_cancelled():
        try:
            await asyncio.Event().wait()
        finally:
            gate.open.set()

    tasks = []
    with first(BaseDatabaseWrapper, "_commit", gate):
        asyncio.run(main())
    assert tasks[0].cancelled()
    assert stats().holders == ()
    assert User.objects.count() == 1


def test_loop_that_ends_during_enter_undoes_it():
    """asyncio.run() that returns while a block is entered undoes that."""
    gate = Gate()

    async def main():
        async def work():
            async with atomic():
                raise AssertionError("must not be entered")

        tasks.append(asyncio.create_task(work()))
        await gate.entered()
        asyncio.get_running_loop().call_soon(gate.open.set)

    tasks = []
    with first(transaction.Atomic, "__enter__", gate):
        asyncio.run(main())
    assert tasks[0].cancelled()
    assert stats().holders == ()


# Python reports that the coroutine, which it frees, did not simply end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_loop_that_is_dropped_with_a_block_open():
    """A loop that closes with a task in a block leaves no lease, and no transaction, behind."""
    inside = threading.Event()

    async def work():
        async with atomic():
            await create(username="ann")
            inside.set()
            await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    task = loop.create_task(work())

    async def wait():
        await until(inside.is_set)

    loop.run_until_complete(wait())
    loop.close()
    task._log_destroy_pending = False
    del task, loop
    gc.collect()
    assert_whole()
    assert User.objects.count() == 0


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
        assert f"{block.__name__}() at test_transactions.py:" in str(caught.value)
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
    block = atomic()
    await asyncio.create_task(block.__aenter__())
    assert len(stats().holders) == 1
    with pytest.raises(RuntimeError, match="was left in another context"):
        await block.__aexit__(None, None, None)
    assert stats().holders == ()
    await create(username="ann")
    assert await usernames() == ["ann"]


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
        assert "pinned() at test_transactions.py:" in stats().holders[0][1]


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
