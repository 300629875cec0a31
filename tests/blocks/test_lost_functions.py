"""Django's own atomic(), in a function on a worker: what is lost there is logged."""

import asyncio
import functools
import logging
from contextlib import suppress

import pytest
from django.contrib.auth.models import Group, User
from django.db import DatabaseError, IntegrityError, connection, transaction

from ormbridge import database_sync_to_async, stats
from tests.core.support import raw, what_is_there
from tests.settings import CHOICE
from tests.support.lost import (
    Other,
    assert_lost,
    create_with_a_bad_value,
    execute,
    execute_and_catch,
    groups,
    postgresql,
    prepare,
    ran,
    sqlite,
)
from tests.support.wrapped import wrap_atomic

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nothing_ran")]


def losses(caplog):
    return [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]


def marked_function(fails=create_with_a_bad_value):
    with transaction.atomic():
        Group.objects.create(name="before")
        transaction.on_commit(lambda: ran.append("mail"))
        with suppress(DatabaseError, ValueError):
            fails()


async def test_function_that_lost_its_transaction_is_logged(caplog):
    """A function whose own atomic() ended well and was rolled back is named in the log."""
    await database_sync_to_async(marked_function)()
    (message,) = losses(caplog)
    assert message.startswith(
        "tests.blocks.test_lost_functions.marked_function: a transaction.atomic() on 'default' "
        "ended without an error, and is lost: Django marked it for a rollback (ValueError: "
    )
    assert "and the error was caught at test_lost_functions.py:" in message
    await assert_lost()


@postgresql
async def test_log_handler_that_queries_where_a_transaction_is_aborted(monkeypatch):
    """It fails there, which is not the function's affair."""

    class Handler(logging.Handler):
        def emit(self, record):
            execute("SELECT 1")

    monkeypatch.setattr(logging.getLogger("ormbridge"), "handlers", [Handler()])
    await database_sync_to_async(marked_function)(functools.partial(execute, "SELECT 1 / 0"))
    await assert_lost()


@postgresql
async def test_function_whose_transaction_postgresql_aborted_is_logged(caplog):
    """So is one that PostgreSQL aborted; its on_commit() functions do not run."""
    await database_sync_to_async(marked_function)(functools.partial(execute, "SELECT 1 / 0"))
    (message,) = losses(caplog)
    assert "is lost: the database rolled it back when 'SELECT 1 / 0' failed" in message
    await assert_lost()


@postgresql
async def test_transactions_of_one_function_are_logged_each_for_itself(caplog):
    """What failed in the first is neither logged again nor taken for what failed in the second."""

    def work():
        marked_function(functools.partial(execute, "SELECT 1 / 0"))
        marked_function(functools.partial(execute, "SELECT nonsense"))

    await database_sync_to_async(work)()
    first, second = losses(caplog)
    assert "when 'SELECT 1 / 0' failed" in first
    assert "when 'SELECT nonsense' failed" in second


async def test_execute_returns_what_the_driver_returns():
    """A cursor of a worker gives back from execute() what it does on any other thread."""

    def work():
        with connection.cursor() as cursor:
            return type(cursor.execute("SELECT 1"))

    assert await database_sync_to_async(work)() is await asyncio.to_thread(_alone, work)


async def test_transaction_whose_commit_fails_is_not_logged(caplog):
    """Where the commit raises, as with a constraint that is looked at then, the caller is told."""

    def work():
        with transaction.atomic():
            User.groups.through.objects.create(user_id=1, group_id=1)

    with pytest.raises(IntegrityError):
        await database_sync_to_async(work)()
    assert losses(caplog) == []


async def test_transaction_lost_as_an_error_is_handled_is_logged(caplog):
    """An error that is being handled around the block is none of the block's."""

    def work():
        try:
            raise LookupError
        except LookupError:
            marked_function()

    await database_sync_to_async(work)()
    assert len(losses(caplog)) == 1


async def test_function_below_a_package_with_its_own_atomic(caplog, monkeypatch):
    """So is one where a package puts its own around atomic(), as those that cache queries do."""
    wrap_atomic(monkeypatch)
    await database_sync_to_async(marked_function)()
    assert len(losses(caplog)) == 1


async def test_savepoint_of_a_function_that_is_lost_is_logged(caplog):
    """So is an inner block of the function."""

    def work():
        with transaction.atomic():
            Group.objects.create(name="outer")
            marked_function()

    await database_sync_to_async(work)()
    assert len(losses(caplog)) == 1
    assert await groups() == ["outer"]


def fails_inside(in_vain):
    """Lose a savepoint, and have the whole end as *in_vain* has it."""
    with transaction.atomic():
        with transaction.atomic(), suppress(ValueError):
            create_with_a_bad_value()
        assert in_vain()


def set_rollback():
    transaction.set_rollback(True)
    return True


@pytest.mark.parametrize("in_vain", [set_rollback, bool], ids=["asked for", "an error"])
async def test_savepoint_that_is_lost_in_vain_is_not_logged(caplog, in_vain):
    """Where the transaction around it is given up, nobody takes it for saved."""
    with suppress(AssertionError):
        await database_sync_to_async(fails_inside)(in_vain)
    assert losses(caplog) == []
    await database_sync_to_async(fails_inside)(lambda: True)
    assert len(losses(caplog)) == 1


def lose_with_its_connection(lose):
    """Have *lose* lose something, close its connection, and save a transaction on another one."""
    with suppress(LookupError), transaction.atomic():
        lose()
        connection.close()
        raise LookupError
    with transaction.atomic():
        Group.objects.create(name="after")


async def test_savepoint_that_is_lost_with_its_connection_is_not_logged_later(caplog):
    """Nor where the connection was closed in that transaction, and another one is saved."""

    def lose():
        with transaction.atomic(), suppress(ValueError):
            create_with_a_bad_value()

    await database_sync_to_async(lose_with_its_connection)(lose)
    assert losses(caplog) == []
    assert await groups() == ["after"]


@sqlite
async def test_transaction_on_a_new_connection_is_not_lost_for_that_of_the_old_one(caplog):
    """What the database rolled back before its connection was closed is no loss of the next."""

    def lose():
        execute("ROLLBACK")
        execute_and_catch("nonsense")

    await database_sync_to_async(lose_with_its_connection)(lose)
    assert losses(caplog) == []
    assert await groups() == ["after"]


async def test_what_django_does_by_itself():
    """Without the bridge, a block that lost its transaction ends as if all were well."""
    silently = [create_with_a_bad_value]
    if CHOICE == "postgresql":
        silently.append(functools.partial(execute, "SELECT 1 / 0"))
    for fails in silently:
        await asyncio.to_thread(_alone, marked_function, fails)
    assert (await groups(), ran.count("mail")) == ([], len(silently) - 1)
    if CHOICE == "mariadb":
        await database_sync_to_async(prepare)()
        await asyncio.to_thread(_alone, _goes_on_after_a_deadlock)
        assert await groups() == ["a", "after", "b"]


def _alone(function, *args):
    """Do it on a thread that the bridge knows nothing of, and close the connection there."""
    try:
        return function(*args)
    finally:
        connection.close()


def _goes_on_after_a_deadlock():
    other = Other()
    with transaction.atomic():
        Group.objects.create(name="before")
        Group.objects.select_for_update().get(pk=1)
        other.take()
        with pytest.raises(DatabaseError, match="1213"):
            Group.objects.select_for_update().get(pk=2)
        Group.objects.create(name="after")
    other.close()


def raises():
    with transaction.atomic():
        create_with_a_bad_value()


def asks():
    with transaction.atomic():
        Group.objects.create(name="before")
        transaction.set_rollback(True)


def handles():
    with transaction.atomic(), suppress(ValueError), transaction.atomic():
        create_with_a_bad_value()


def ends_the_last():
    execute_and_catch("SELEC")


@pytest.mark.parametrize("work", [raises, asks, handles, ends_the_last])
async def test_function_that_lost_nothing_is_not_logged(caplog, work):
    """What raises, what was asked for, what a savepoint undid, what had no transaction: no loss."""
    with suppress(ValueError):
        await database_sync_to_async(work)()
    assert losses(caplog) == []


async def test_nothing_of_a_failure_stays(caplog):
    """A worker that goes back remembers no statement that failed, nor its error."""

    def fail():
        with transaction.atomic():
            execute("SELEC")

    def remembered():
        witness = connection.ormbridge_witness
        assert connection.execute_wrappers == [witness.execute]
        return witness.error, witness.statement

    with pytest.raises(DatabaseError):
        await database_sync_to_async(fail)()
    assert await database_sync_to_async(remembered)() == (None, "")


async def test_wrappers_that_were_thrown_away(pool_settings, caplog):
    """A call that empties the list of wrappers costs no connection, and the next one is seen to."""
    pool_settings(MAX_THREADS=1)

    def throw_away():
        connection.ensure_connection()
        connection.execute_wrappers = []
        return connection.connection

    before = await database_sync_to_async(throw_away)()
    assert await database_sync_to_async(raw)() is before
    assert (await database_sync_to_async(what_is_there)())[0] == 1
    assert (caplog.text, stats().discarded) == ("", 0)


@postgresql
async def test_iterator_that_outlives_its_transaction(pool_settings):
    """Freed in the transaction of another call, it does not abort that one."""
    pool_settings(MAX_THREADS=1)
    await Group.objects.abulk_create([Group(name=str(number)) for number in range(2)])
    kept = []

    def leave_open():
        with transaction.atomic():
            kept.append(Group.objects.iterator(chunk_size=1))
            next(kept[0])

    def free():
        with transaction.atomic():
            Group.objects.create(name="other")
            kept.clear()
            return Group.objects.count()

    await database_sync_to_async(leave_open)()
    assert await database_sync_to_async(free)() == 3
