"""A block that ends well has committed, or it raises: what a caught failure leaves behind."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import functools
from contextlib import suppress

import django
import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.db.transaction import TransactionManagementError

from ormbridge import BridgeError, TransactionAborted, atomic, database_sync_to_async, pinned
from tests.support.blocks import assert_whole
from tests.support.lost import assert_lost, create_with_a_bad_value, groups, postgresql, ran, write

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nothing_ran")]


async def ask_in_a_block():
    """Roll back on purpose."""
    async with atomic():
        await write()
        await database_sync_to_async(transaction.set_rollback)(True)


@database_sync_to_async
def ask_in_a_function():
    """Do so as django-rest-framework does."""
    with transaction.atomic():
        Group.objects.create(name="before")
        transaction.set_rollback(True)


async def fail():
    """Fail, and let the error out of the block."""
    with suppress(DatabaseError):
        async with atomic():
            await write()
            await write()


async def lose():
    """Have an inner block that is no savepoint fail, and go on."""
    with pytest.raises(TransactionAborted) as aborted:
        async with atomic():
            await write()
            with suppress(ValueError):
                async with atomic(savepoint=False):
                    raise ValueError
    return str(aborted.value)


EARLIER = [ask_in_a_block, ask_in_a_function, fail]


@pytest.mark.parametrize("earlier", EARLIER)
async def test_earlier_block_does_not_speak_for_the_next(earlier):
    """What Django keeps of the block before is neither a reason nor an excuse."""
    await earlier()
    assert "IntegrityError" not in await lose()
    await assert_lost()


@pytest.mark.parametrize("earlier", EARLIER)
def test_earlier_block_does_not_speak_for_the_next_below_a_frame(earlier):
    """So it is on the thread of a frame."""

    async def both():
        await earlier()
        return await lose()

    assert "IntegrityError" not in async_to_sync(both)()


async def test_earlier_block_does_not_speak_for_the_next_in_functions(caplog):
    """So it is where Django's own blocks are logged."""

    @database_sync_to_async
    def lose_in_a_function():
        with transaction.atomic(), suppress(ValueError):
            with transaction.atomic(savepoint=False):
                raise ValueError

    await ask_in_a_function()
    caplog.clear()
    await lose_in_a_function()
    (told,) = caplog.messages
    assert "ended without an error, and is lost" in told


def update_nothing():
    """Save a row that is not there any more; it raises, and Django marks the block."""
    Group(pk=12345, name="gone").save(update_fields=["name"])


def update_with_a_bad_value():
    Group(pk="not a number", name="x").save(force_update=True)


MARKED = [update_nothing, create_with_a_bad_value, update_with_a_bad_value]


@pytest.mark.parametrize("fails", MARKED)
async def test_block_that_django_marked(fails):
    """Where save() or create() failed and was caught, all is lost on every database: it raises."""
    with pytest.raises(TransactionAborted) as aborted:
        async with atomic():
            await write()
            with pytest.raises((DatabaseError, ValueError)) as caught:
                await database_sync_to_async(fails)()
    assert aborted.value.__cause__ is caught.value
    assert "Django marked it for a rollback" in str(aborted.value)
    assert "caught at test_lost_blocks.py:" in str(aborted.value)
    await assert_lost()


@pytest.mark.skipif(django.VERSION < (6, 0), reason="the name is new in Django 6.0")
async def test_not_updated():
    """NotUpdated, of save(update_fields=…) that met no row, is named."""
    with pytest.raises(TransactionAborted, match=r"NotUpdated: Save with update_fields did not"):
        async with atomic():
            with suppress(Group.NotUpdated):
                await Group(pk=12345, name="gone").asave(update_fields=["name"])


async def test_constraint_of_create():
    """A create() that met a constraint is named with its statement, on every database."""
    with pytest.raises(TransactionAborted, match=r"when 'INSERT INTO .* failed \(IntegrityError"):
        async with atomic():
            await write()
            with suppress(DatabaseError):
                await Group.objects.acreate(name="before")
    await assert_lost()


@pytest.mark.parametrize("fails", [*MARKED, functools.partial(Group.objects.create, pk=1)])
async def test_savepoint_clears_it(fails):
    """What failed in a block of its own, and was caught around it, costs the outer one nothing."""
    async with atomic():
        await write()
        with pytest.raises((DatabaseError, ValueError)):
            async with atomic():
                await create(pk=1, name="x")
                await database_sync_to_async(fails)()
        await write("after")
    assert (await groups(), ran) == (["after", "before"], ["before", "after"])


create = database_sync_to_async(Group.objects.create)


async def test_what_a_savepoint_undid_is_not_named():
    """The error that is named is the one that cost the block, not one before it."""
    with pytest.raises(TransactionAborted) as aborted:
        async with atomic():
            with suppress(DatabaseError):
                async with atomic():
                    await create(name="before")
                    await create(name="before")
            with suppress(LookupError):
                async with atomic(savepoint=False):
                    raise LookupError
    assert aborted.value.__cause__ is None


async def test_code_that_went_on_does_not_hide_the_cause():
    """Where the code goes on, and Django refuses it, the error that came first is named."""
    with pytest.raises(TransactionAborted) as aborted:
        async with atomic():
            with suppress(ValueError):
                await database_sync_to_async(create_with_a_bad_value)()
            for _ in range(2):
                with pytest.raises(TransactionManagementError):
                    await create(name="after")
    assert isinstance(aborted.value.__cause__, ValueError)


async def test_savepoint_of_the_function_clears_it():
    """The same holds for Django's own atomic() inside a function."""

    def work():
        with suppress(DatabaseError), transaction.atomic():
            Group.objects.create(name="before")

    async with atomic():
        await write()
        await database_sync_to_async(work)()
    assert (await groups(), ran) == (["before"], ["before"])


async def test_inner_block_says_so_first():
    """An inner block that went on raises as it ends; the outer one goes on if that is caught."""
    async with atomic():
        await write()
        with pytest.raises(TransactionAborted):
            async with atomic():
                await write("inner")
                with suppress(ValueError):
                    await database_sync_to_async(create_with_a_bad_value)()
    assert (await groups(), ran) == (["before"], ["before"])


async def test_block_without_savepoint_that_failed():
    """Where a block with savepoint=False failed and was caught, the outer one raises as it ends."""
    with pytest.raises(TransactionAborted, match="Django marked it for a rollback"):
        async with atomic():
            await write()
            with suppress(LookupError):
                async with atomic(savepoint=False):
                    raise LookupError
    await assert_lost()


async def test_connection_that_was_closed():
    """Where the code closed the connection, all is lost, and the block raises."""
    with pytest.raises(TransactionAborted, match="its connection was closed"):
        async with atomic():
            await write()
            await database_sync_to_async(lambda: connection.close())()
    await assert_lost()


def break_after_the_commit():
    """Have the connection break between the next commit and what switches autocommit on again."""

    def switch(autocommit):
        if autocommit:
            del own._set_autocommit
            raise OperationalError("the server has gone away")
        type(own)._set_autocommit(own, autocommit)

    own = connections["default"]
    own.ensure_connection()  # which switches it on, too
    own._set_autocommit = switch


@transaction.atomic
def write_in_a_function():
    Group.objects.create(name="before")


@atomic
async def write_in_a_block():
    await Group.objects.acreate(name="before")


@pytest.mark.parametrize("work", [write_in_a_block, database_sync_to_async(write_in_a_function)])
async def test_connection_that_broke_after_the_commit(work):
    """What can't be switched to autocommit again is replaced: no transaction seems to be open."""
    async with pinned():
        await database_sync_to_async(break_after_the_commit)()
        with pytest.raises(OperationalError):
            await work()
        async with atomic():
            await Group.objects.acreate(name="next")
    assert await groups() == ["before", "next"]
    assert_whole()


def test_connection_that_broke_after_the_commit_below_a_frame():
    """So it is on the thread of a synchronous frame."""
    break_after_the_commit()
    with pytest.raises(OperationalError):
        async_to_sync(write_in_a_block)()
    assert connection.get_autocommit()
    assert [group.name for group in Group.objects.all()] == ["before"]


async def test_rollback_that_was_asked_for_is_none():
    """set_rollback(True) rolls back, in silence, also after a failure that was caught."""
    async with atomic():
        await write()
        with suppress(ValueError):
            await database_sync_to_async(create_with_a_bad_value)()
        await database_sync_to_async(transaction.set_rollback)(True)
    await assert_lost()


async def test_rollback_of_a_savepoint_that_was_asked_for():
    """set_rollback(True) in an inner block undoes that one, and the outer one commits."""
    async with atomic():
        await write()
        async with atomic():
            await write("inner")
            await database_sync_to_async(transaction.set_rollback)(True)
    assert (await groups(), ran) == (["before"], ["before"])


@postgresql
async def test_set_rollback_false_saves_nothing_on_postgresql():
    """set_rollback(False) does not make an aborted transaction whole: it raises all the same."""
    with pytest.raises(TransactionAborted):
        async with atomic():
            await write()
            with suppress(DatabaseError):
                await Group.objects.acreate(name="before")
            await database_sync_to_async(transaction.set_rollback)(False)
    await assert_lost()


async def test_rollback_that_was_asked_for_and_taken_back():
    """What marks the block after set_rollback(False) is a loss, whatever was asked for before."""

    def mark():
        transaction.set_rollback(True)
        transaction.set_rollback(False)
        with suppress(LookupError), transaction.atomic(savepoint=False):
            raise LookupError

    with pytest.raises(TransactionAborted, match="Django marked it"):
        async with atomic():
            await write()
            await database_sync_to_async(mark)()
    await assert_lost()


async def test_block_that_raises_raises_its_own():
    """A block that is left by an exception raises that one, whatever failed before."""
    with pytest.raises(LookupError):
        async with atomic():
            with suppress(ValueError):
                await database_sync_to_async(create_with_a_bad_value)()
            raise LookupError


@atomic
async def go_on():
    """Go on after a failure, in a decorated function."""
    await write()
    with suppress(ValueError):
        await database_sync_to_async(create_with_a_bad_value)()
    return "all is well"


async def test_decorator():
    """A decorated function raises, and returns nothing."""
    with pytest.raises(
        TransactionAborted, match=r"atomic\(\) around tests.blocks.test_lost_blocks.go_on"
    ):
        await go_on()
    await assert_lost()


def test_under_a_synchronous_frame():
    """So it is on the thread of a synchronous frame, and its connection is left as it was."""
    before = list(connection.execute_wrappers), dict(vars(connection)).keys()
    with pytest.raises(TransactionAborted):
        async_to_sync(go_on)()
    assert (list(connection.execute_wrappers), dict(vars(connection)).keys()) == before
    assert (list(Group.objects.all()), ran) == ([], [])


def test_error_is_of_both_families():
    """It is an error of the bridge, and one of the database, as code around a block expects."""
    assert issubclass(TransactionAborted, BridgeError)
    assert issubclass(TransactionAborted, DatabaseError)
