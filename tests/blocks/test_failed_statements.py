"""A statement failed in a block, and was caught: what each database makes of the transaction."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import importlib
import inspect
from contextlib import asynccontextmanager, nullcontext, suppress

import pytest
from django.contrib.auth.models import Group, User
from django.db import DatabaseError, connection, connections
from django.db.models import F
from django.db.models.expressions import RawSQL
from django.db.transaction import TransactionManagementError

from ormbridge import TransactionAborted, atomic, database_sync_to_async, stream
from tests.core.gate import GUARD
from tests.support.blocks import assert_whole
from tests.support.lost import (
    Other,
    assert_lost,
    execute,
    execute_and_catch,
    groups,
    mariadb,
    postgresql,
    prepare,
    ran,
    sqlite,
    write,
)

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nothing_ran")]


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
        f"atomic() at test_failed_statements.py:{opened} in {name} ended without an error, and "
        "nothing of it was saved: the database rolled it back when 'SELECT 1 / 0' failed "
        "(DataError: division by zero), and the error was caught at "
        f"test_failed_statements.py:{caught} in {name}. Put what may fail into an atomic() of its "
        "own, and catch the error around it [nothing-saved]"
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
    assert "caught at test_failed_statements.py" in str(aborted.value)
    assert isinstance(aborted.value.__cause__, DatabaseError)
    await assert_lost()


@postgresql
async def test_rows_that_are_read_ahead():
    """The error of rows that nobody asked for was caught nowhere, and no driver is named."""
    await Group.objects.abulk_create([Group(name=str(number)) for number in range(4)])
    last = RawSQL("1 / (CASE name WHEN '3' THEN 0 ELSE 1 END)", [])
    with pytest.raises(TransactionAborted, match="division by zero") as caught:
        async with atomic():
            # With statistics of the table the server may sort all rows before it gives the first.
            await database_sync_to_async(execute_and_catch)("SET LOCAL enable_sort = off")
            async with stream(Group.objects.annotate(last=last).order_by("name"), 2) as rows:
                await anext(rows)
                with suppress(DatabaseError):
                    await Group.objects.acount()  # behind them in the line
    assert "caught at" not in str(caught.value)


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


@database_sync_to_async
def lock(pk):
    """Read a row for update."""
    return Group.objects.select_for_update().get(pk=pk).name


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
@pytest.mark.parametrize("inner", [False, True])
async def test_connection_that_was_killed(inner):
    """What broke the connection (2013) is named, not the statement that met the broken one."""
    with pytest.raises(TransactionAborted, match=r"it back when .* failed .*2013.*run all of it"):
        async with atomic():
            await write()
            raw = await database_sync_to_async(lambda: connection.connection)()
            other = Other()
            other.cursor.execute(f"KILL {raw.thread_id()}")
            other.close()
            with pytest.raises(DatabaseError, match="2013"):
                async with atomic() if inner else nullcontext():
                    await database_sync_to_async(execute)("SELECT 1")
            with pytest.raises(TransactionManagementError):
                await Group.objects.acreate(name="after")
    await assert_lost()


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
