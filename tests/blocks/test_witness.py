"""A block that ends well has committed, or it raises: what a caught failure leaves behind."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import functools
import importlib
import inspect
import logging
import threading
from contextlib import asynccontextmanager, suppress

import django
import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group, User
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.db.models import F
from django.db.models.expressions import RawSQL
from django.db.transaction import TransactionManagementError

from ormbridge import (
    BridgeError,
    TransactionAborted,
    atomic,
    database_sync_to_async,
    pinned,
    stats,
    stream,
)
from tests.core.gate import GUARD
from tests.core.support import raw, what_is_there
from tests.settings import CHOICE
from tests.support.blocks import assert_whole

pytestmark = pytest.mark.django_db(transaction=True)

on = functools.partial(pytest.mark.skipif, reason="another database's own way to fail")
postgresql = on(CHOICE != "postgresql")
mariadb = on(CHOICE != "mariadb")
sqlite = on(CHOICE != "sqlite")

ran = []


@pytest.fixture(autouse=True)
def one_worker(pool_settings):
    """Let there be one worker, and nothing that ran."""
    pool_settings(MAX_THREADS=1)
    ran.clear()


def execute(*statements):
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def execute_and_catch(*statements):
    """Do what fails, and catch it inside the function."""
    with suppress(DatabaseError):
        execute(*statements)


@database_sync_to_async
def groups():
    """Return the names of all groups, sorted."""
    return sorted(Group.objects.values_list("name", flat=True))


async def write(name="before"):
    """Write in the block, and ask for a mail after the commit."""
    await Group.objects.acreate(name=name)
    await database_sync_to_async(transaction.on_commit)(lambda: ran.append(name))


async def assert_lost():
    """See that nothing was saved, that nobody was told it was, and that the next block commits."""
    assert (await groups(), ran) == ([], [])
    assert_whole()
    async with atomic():
        await write("next")
    assert (await groups(), ran) == (["next"], ["next"])


FAILURES = {
    "statement_timeout": ["SET LOCAL statement_timeout = 20", "SELECT pg_sleep(600)"],
    "constraint": ["INSERT INTO auth_group (name) VALUES ('before')"],
    "syntax": ["SELEC"],
    "division": ["SELECT 1 / 0"],
    "no such table": ["SELECT * FROM nothing_like_it"],
}


@postgresql
@pytest.mark.parametrize("where", [execute, execute_and_catch])
@pytest.mark.parametrize("failure", FAILURES)
async def test_statement_that_was_caught(failure, where):
    """PostgreSQL aborts a transaction at any error, and the end of its block says which it was."""
    statements = FAILURES[failure]
    with pytest.raises(TransactionAborted) as aborted:
        async with atomic():
            await write()
            with suppress(DatabaseError):
                await database_sync_to_async(where)(*statements)
    assert f"{statements[-1]!r} failed" in str(aborted.value)
    assert isinstance(aborted.value.__cause__, DatabaseError)
    await assert_lost()


@postgresql
async def test_message_says_where_the_error_was_caught():
    """The message names the block, the statement, its error, who caught it, and the remedy."""
    with pytest.raises(TransactionAborted) as aborted:
        async with atomic():
            try:
                await database_sync_to_async(execute)("SELECT 1 / 0")  # caught here
            except DatabaseError:
                ran.append("went on")
    lines, start = inspect.getsourcelines(test_message_says_where_the_error_was_caught)
    caught = next(number for number, line in enumerate(lines, start) if "# caught here" in line)
    opened = next(number for number, line in enumerate(lines, start) if "async with" in line)
    name = test_message_says_where_the_error_was_caught.__name__
    assert str(aborted.value) == (
        f"atomic() at test_witness.py:{opened} in {name} ended without an error, and nothing of it "
        "was saved: the database rolled it back when 'SELECT 1 / 0' failed (DataError: division by "
        f"zero), and the error was caught at test_witness.py:{caught} in {name}. Put what may fail "
        "into an atomic() of its own, and catch the error around it [nothing-saved]"
    )


@postgresql
async def test_fetch_that_was_caught():
    """A fetch is no statement, and its error is named all the same."""
    *_, last = await User.objects.abulk_create([User(username=name) for name in "abc"])
    rows = User.objects.order_by("id").annotate(quotient=1 / (F("id") - last.pk))
    with pytest.raises(
        TransactionAborted, match=r"rolled it back \(DataError: division"
    ) as aborted:
        async with atomic():
            await write()
            with suppress(DatabaseError):
                async for _ in stream(rows, 2):
                    pass
    assert "caught at test_witness.py" in str(aborted.value)
    assert isinstance(aborted.value.__cause__, DatabaseError)
    await assert_lost()


@postgresql
async def test_failure_that_aborts_nothing_is_not_named():
    """A failure that PostgreSQL never heard of is not taken for the one that lost the block."""

    def fail_in_the_driver():
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s", [object()])

    with pytest.raises(TransactionAborted, match="'SELECT 1 / 0' failed"):
        async with atomic():
            with suppress(DatabaseError):
                await database_sync_to_async(fail_in_the_driver)()
            for _ in range(2):
                await database_sync_to_async(execute_and_catch)("SELECT 1 / 0")
                await database_sync_to_async(execute_and_catch)("SELECT 2 / 0")


@postgresql
async def test_message_names_the_function_that_caught_it():
    """Where the error did not leave the function, the function is named."""
    with pytest.raises(TransactionAborted, match=r"in execute_and_catch\. Put what may fail"):
        async with atomic():
            await database_sync_to_async(execute_and_catch)("SELECT 1 / 0")


@postgresql
async def test_lock_timeout(transactional_db):
    """The same holds for a lock that was not had in time, of a read by a method of Django."""
    psycopg = importlib.import_module("psycopg")
    parameters = connections["default"].get_connection_params()
    names = ("host", "port", "user", "password", "dbname")
    with psycopg.connect(**{k: parameters[k] for k in names if k in parameters}) as holder:
        holder.execute("LOCK TABLE auth_user IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(TransactionAborted, match="lock timeout"):
            async with atomic():
                await write()
                await database_sync_to_async(execute)("SET LOCAL lock_timeout = 20")
                with suppress(DatabaseError):
                    await User.objects.acount()
    await assert_lost()


@postgresql
async def test_statement_that_somebody_cancelled():
    """The same holds for a statement that was cancelled on the server."""
    with pytest.raises(TransactionAborted, match="due to user request"):
        async with atomic():
            await write()
            await database_sync_to_async(execute_and_catch)(
                "SELECT pg_cancel_backend(pg_backend_pid()), pg_sleep(600)"
            )
    await assert_lost()


@postgresql
async def test_session_that_the_server_ended():
    """The same holds where the server closed the connection, and code caught what came of it."""
    with pytest.raises(TransactionAborted, match=r"rolled it back.*saved it: run all of it again"):
        async with atomic():
            await write()
            await database_sync_to_async(execute_and_catch)(
                "SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(600)"
            )
    await assert_lost()


@postgresql
async def test_idle_in_transaction_timeout():
    """A block whose session the server ended meanwhile raises, whether it asks again or not."""
    for asks in (True, False):
        with pytest.raises(DatabaseError) as raised:
            async with atomic():
                await write()
                await database_sync_to_async(execute)(
                    "SET LOCAL idle_in_transaction_session_timeout = 1"
                )
                raw = await database_sync_to_async(lambda: connection.connection)()
                # Readable: the server has said goodbye.
                await asyncio.to_thread(_wait_until_readable, raw.fileno())
                if asks:
                    await database_sync_to_async(execute_and_catch)("SELECT 1")
        assert isinstance(raised.value, TransactionAborted) is asks
    await assert_lost()


def _wait_until_readable(fileno):
    select = importlib.import_module("select")
    assert select.select([fileno], [], [], GUARD)[0]


@postgresql
async def test_statement_around_django():
    """A statement through the driver's own cursor is seen by what it did to the transaction."""

    def around():
        with suppress(Exception):
            connection.connection.execute("SELECT 1 / 0")

    with pytest.raises(TransactionAborted, match=r"the database rolled it back\. Put"):
        async with atomic():
            await write()
            await database_sync_to_async(around)()
    await assert_lost()


class Other:
    """Another session that wants what the block has, and has what the block wants."""

    def __init__(self):
        mysql = importlib.import_module("MySQLdb")
        self.raw = mysql.connect(**connections["default"].get_connection_params())
        self.cursor = self.raw.cursor()
        self.cursor.execute("SET autocommit = 0")
        self.waits = threading.Thread(target=self._lock, args=(1,))

    def take(self):
        """Lock the second row, do so much that the other one is the victim; wait for the first."""
        self._lock(2)
        self.cursor.executemany(
            "INSERT INTO auth_user_groups (user_id, group_id) VALUES (%s, 2)", [(1,), (2,), (3,)]
        )
        self.cursor.execute("UPDATE auth_user SET first_name = 'changed' WHERE id IN (2, 3)")
        self.waits.start()

    def _lock(self, pk):
        self.cursor.execute("SELECT * FROM auth_group WHERE id = %s FOR UPDATE", [pk])

    def close(self):
        if self.waits.ident is not None:
            self.waits.join(GUARD)
        self.raw.rollback()
        self.raw.close()


@database_sync_to_async
def lock(pk):
    """Read a row for update."""
    return Group.objects.select_for_update().get(pk=pk).name


def prepare():
    Group.objects.bulk_create([Group(pk=1, name="a"), Group(pk=2, name="b")])
    User.objects.bulk_create([User(pk=pk, username=str(pk)) for pk in (1, 2, 3)])


@asynccontextmanager
async def deadlock():
    """Have the body be in a block in which the next lock of the second row is lost to a deadlock.

    Nothing of the block is saved, and it raises.
    """
    await database_sync_to_async(prepare)()
    other = Other()
    try:
        with pytest.raises(TransactionAborted, match=r"1213.*would not have saved it: run all of"):
            async with atomic():
                await write()
                await lock(1)
                await asyncio.to_thread(other.take)
                yield
    finally:
        await asyncio.to_thread(other.close)
    assert (await groups(), ran) == (["a", "b"], [])
    assert_whole()


@mariadb
@pytest.mark.parametrize("goes_on", [True, False])
async def test_deadlock_of_a_read(goes_on):
    """A deadlock rolls back the whole transaction on MariaDB; what follows is not committed."""
    async with deadlock():
        with pytest.raises(DatabaseError, match="1213"):
            await lock(2)
        if goes_on:
            with pytest.raises(TransactionManagementError):
                await Group.objects.acreate(name="after")


@mariadb
async def test_deadlock_in_a_procedure():
    """Django hands a procedure to the driver past its wrappers of statements; it is seen, too."""

    def call_procedure():
        with connection.cursor() as cursor:
            cursor.callproc("ormbridge_lock", [2])

    body = "(IN k BIGINT) SELECT * FROM auth_group WHERE id = k FOR UPDATE"
    await database_sync_to_async(execute)(f"CREATE PROCEDURE ormbridge_lock{body}")
    try:
        async with deadlock():
            with pytest.raises(DatabaseError, match="1213"):
                await database_sync_to_async(call_procedure)()
            with pytest.raises(TransactionManagementError):
                await Group.objects.acreate(name="after")
    finally:
        await database_sync_to_async(execute)("DROP PROCEDURE ormbridge_lock")


@mariadb
async def test_no_room_for_another_lock():
    """Where the table of locks is full (1206), the transaction is gone as well."""
    full = "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = 1206, MESSAGE_TEXT = 'too many locks'"
    with pytest.raises(TransactionAborted, match="1206"):
        async with atomic():
            await write()
            await database_sync_to_async(execute_and_catch)(full)
            with pytest.raises(TransactionManagementError):
                await Group.objects.acreate(name="after")
    await assert_lost()


@mariadb
async def test_deadlock_in_an_inner_block():
    """An inner block does not save the outer one: its savepoint has gone with all the rest."""
    async with deadlock():
        with pytest.raises(DatabaseError, match="1213"):
            async with atomic():
                await lock(2)


@mariadb
async def test_row_that_changed_since_it_was_read():
    """So it is where innodb_snapshot_isolation refuses a row that has changed (1020)."""
    await database_sync_to_async(prepare)()
    other = Other()
    try:
        with pytest.raises(TransactionAborted, match="1020"):
            async with atomic():
                await database_sync_to_async(execute)(
                    "SET SESSION innodb_snapshot_isolation = ON",
                    "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
                )
                # The level holds from the next transaction on.
                raw = await database_sync_to_async(lambda: connection.connection)()
                await database_sync_to_async(raw.commit)()
                await write()
                assert await groups() == ["a", "b", "before"]
                # Not behind "before": that gap is locked while an earlier test's row is there.
                other.cursor.execute("UPDATE auth_group SET name = 'aa' WHERE id = 2")
                other.raw.commit()
                with pytest.raises(DatabaseError, match="1020"):
                    await lock(2)
    finally:
        other.close()
    assert (await groups(), ran) == (["a", "aa"], [])


@mariadb
@pytest.mark.parametrize(
    "statements",
    [
        ["SET STATEMENT max_statement_time = 0.02 FOR SELECT SLEEP(600)"],  # 1969
        ["SET innodb_lock_wait_timeout = 1", "SELECT * FROM auth_group WHERE id = 2 FOR UPDATE"],
        ["INSERT INTO auth_group (name) VALUES ('before')"],
        ["SELEC"],
    ],
)
async def test_failures_that_lose_nothing_on_mariadb(statements):
    """A lock wait (1205), a statement over its time (1969), a constraint: the block commits."""
    await database_sync_to_async(prepare)()
    other = Other()
    other._lock(2)
    try:
        async with atomic():
            await write()
            with pytest.raises(DatabaseError):
                await database_sync_to_async(execute)(*statements)
            await write("after")
    finally:
        other.close()
    assert (await groups(), ran) == (["a", "after", "b", "before"], ["before", "after"])


@mariadb
async def test_lock_wait_that_rolls_back():
    """Where innodb_rollback_on_timeout is on, a lock wait (1205) loses all, and is told."""
    await database_sync_to_async(prepare)()
    other = Other()
    other._lock(2)

    cursors = importlib.import_module("MySQLdb.cursors")

    class Cursor(cursors.Cursor):
        """Answers as a server does that was started with the option; it can't be set later."""

        def execute(self, query, args=None):
            return super().execute(query.replace("@@innodb_rollback_on_timeout", "1"), args)

    def dress():
        connection.connection.cursorclass = Cursor

    try:
        with pytest.raises(TransactionAborted, match="1205"):
            async with atomic():
                await write()
                await database_sync_to_async(dress)()
                await database_sync_to_async(execute_and_catch)(
                    "SET innodb_lock_wait_timeout = 1",
                    "SELECT * FROM auth_group WHERE id = 2 FOR UPDATE",
                )
    finally:
        other.close()
    assert (await groups(), ran) == (["a", "b"], [])


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


@sqlite
async def test_failures_that_lose_nothing_on_sqlite():
    """On SQLite a statement that fails leaves the transaction whole: the block commits."""
    async with atomic():
        await write()
        for statement in ("INSERT INTO auth_group (name) VALUES ('before')", "SELEC"):
            with pytest.raises(DatabaseError):
                await database_sync_to_async(execute)(statement)
        await write("after")
    assert (await groups(), ran) == (["after", "before"], ["before", "after"])


@sqlite
async def test_transaction_that_sqlite_rolled_back():
    """Where SQLite gave up the whole transaction, nothing that follows is committed."""
    with pytest.raises(TransactionAborted, match="the database rolled it back"):
        async with atomic():
            await write()
            with pytest.raises(DatabaseError):
                await database_sync_to_async(execute)(
                    "INSERT OR ROLLBACK INTO auth_group (name) VALUES ('before')"
                )
            with pytest.raises(TransactionManagementError):
                await Group.objects.acreate(name="after")
    await assert_lost()


def update_nothing():
    """Save a row that is not there any more; it raises, and Django marks the block."""
    Group(pk=12345, name="gone").save(update_fields=["name"])


def create_with_a_bad_value():
    Group.objects.create(pk="not a number", name="x")


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
    assert "caught at test_witness.py:" in str(aborted.value)
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
        TransactionAborted, match=r"atomic\(\) around tests.blocks.test_witness.go_on"
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


# Django's own atomic(), in a function on a worker


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
        "tests.blocks.test_witness.marked_function: a transaction.atomic() on 'default' ended "
        "without an error, and is lost: Django marked it for a rollback (ValueError: "
    )
    assert "and the error was caught at test_witness.py:" in message
    await assert_lost()


@postgresql
async def test_function_whose_transaction_postgresql_aborted_is_logged(caplog):
    """So is one that PostgreSQL aborted; its on_commit() functions do not run."""
    await database_sync_to_async(marked_function)(functools.partial(execute, "SELECT 1 / 0"))
    (message,) = losses(caplog)
    assert "is lost: the database rolled it back when 'SELECT 1 / 0' failed" in message
    await assert_lost()


async def test_savepoint_of_a_function_that_is_lost_is_logged(caplog):
    """So is an inner block of the function."""

    def work():
        with transaction.atomic():
            Group.objects.create(name="outer")
            marked_function()

    await database_sync_to_async(work)()
    assert len(losses(caplog)) == 1
    assert await groups() == ["outer"]


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
        function(*args)
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
async def test_rows_that_are_read_ahead():
    """The error of rows that nobody asked for was caught nowhere, and no driver is named."""
    await Group.objects.abulk_create([Group(name=str(number)) for number in range(4)])
    last = RawSQL("1 / (CASE name WHEN '3' THEN 0 ELSE 1 END)", [])
    with pytest.raises(TransactionAborted, match="division by zero") as caught:
        async with atomic():
            async with stream(Group.objects.annotate(last=last).order_by("name"), 2) as rows:
                await anext(rows)
                with suppress(DatabaseError):
                    await Group.objects.acount()  # behind them in the line
    assert "caught at" not in str(caught.value)


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
