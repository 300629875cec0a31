"""atomic(): what is inside, its arguments, its decorator, and how a block ends."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import contextlib
import dataclasses
import functools
import gc
import inspect
import traceback
import weakref

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
from tests.core.gate import GUARD
from tests.core.support import thread_name, until
from tests.support.blocks import (
    create,
    elsewhere,
    ended,
    in_atomic_block,
    on_commit,
    usernames,
    usernames_of_other,
)
from tests.support.canceller import in_context

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


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


# The end of a block


async def test_commit_that_fails():
    """A commit that the database refuses raises its error; nothing is left of the block."""
    with pytest.raises(IntegrityError):
        async with atomic():
            await create(username="ann")
            # Checked at the commit, by databases whose constraints may be deferred.
            await Permission.objects.acreate(name="none", codename="none", content_type_id=999_999)
    assert await usernames() == []


async def test_error_comes_out_as_it_was_raised():
    """Its traceback names no code but that through which it came, and it is in no cycle."""
    raised = []

    async def work():
        kept = Kept()
        raised.append(weakref.ref(kept))
        async with atomic():
            async with atomic():
                await create(username="ann")
                raise ZeroDivisionError

    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError) as error:
            await work()
        seen = [frame.name for frame in traceback.extract_tb(error.tb)]
        del error
        await until(lambda: not raised[0]())
    finally:
        gc.enable()
    assert seen == ["test_error_comes_out_as_it_was_raised", "work"]


class Kept:
    """What a variable of a function that fails has."""


@dataclasses.dataclass(frozen=True)
class Refused(Exception):  # noqa: N818 # it is what the block raises
    """An error that lets nobody set an attribute, its traceback not either."""

    reason: str

    def with_traceback(self, traceback):
        """Refuse that, too."""
        raise TypeError("with_traceback")


@pytest.mark.parametrize("open_block", [atomic, pinned])
async def test_error_that_cannot_be_changed(open_block):
    """An error of a frozen dataclass comes out as well, from the body and from on_commit()."""

    async def work():
        raise Refused("full")

    with pytest.raises(Refused, match="full"):
        async with open_block():
            await work()
    with pytest.raises(Refused, match="full"):
        async with atomic():
            await on_commit(work)


@pytest.mark.parametrize("open_block", [atomic, pinned])
async def test_block_that_is_left_by_hand(open_block):
    """It may be told of the kind of an error alone, as contextlib's managers may."""
    block = open_block()
    await block.__aenter__()
    await create(username="ann")
    assert await block.__aexit__(ZeroDivisionError, None, None) is None
    assert await usernames() == ([] if open_block is atomic else ["ann"])


@pytest.mark.parametrize("open_around", [contextlib.nullcontext, pinned, atomic])
async def test_beginning_that_fails_half_way(monkeypatch, open_around):
    """What Django has entered by then is left again, and what is around it goes on."""

    def fail(connection):
        raise MemoryError("nothing is left")

    async with in_context(holds=True):
        async with open_around():
            around = await database_sync_to_async(in_atomic_block)()
            with monkeypatch.context() as patch, pytest.raises(MemoryError):
                patch.setattr("ormbridge.blocks.atomic.attend", fail)
                async with atomic():
                    pass
            blocks = await database_sync_to_async(lambda: len(connection.atomic_blocks))()
            await create(username="ann")
        assert blocks == int(around)
        assert not await database_sync_to_async(in_atomic_block)()
    assert stats().discarded == 0
    assert await usernames() == ["ann"]


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
