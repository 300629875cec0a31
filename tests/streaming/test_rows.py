"""The rows of a stream: all of them, in bounded memory, one chunk read ahead."""

import asyncio
import contextvars
import gc
import time
import weakref
from datetime import datetime, timedelta, timezone
from unittest import mock

import pytest
from django.contrib.auth.models import Group, User
from django.db import DatabaseError, connection, transaction
from django.db.models import Count, Prefetch

from ormbridge import (
    atomic,
    database_sync_to_async,
    pinned,
    stats,
    stream,
)
from tests.core.gate import GUARD, Gate
from tests.core.support import no_worker_is_leased, until
from tests.settings import CHOICE
from tests.support.rows import IN_ORDER, NAMES, QUERYSETS, ROWS, server_side_cursors

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("chunk_size", [1, 3, 5, 10, 2000])
@pytest.mark.parametrize("kind", QUERYSETS)
async def test_all_rows_in_order(watch, kind, chunk_size):
    """All rows come, in order, whatever their kind and wherever a chunk ends."""
    queryset, name_of = QUERYSETS[kind]
    assert [name_of(row) async for row in stream(queryset, chunk_size)] == NAMES
    async with stream(queryset, chunk_size) as rows:
        assert [name_of(row) async for row in rows] == NAMES
    await no_worker_is_leased()
    assert stats().threads == 1


async def test_slices_groups_and_nothing(watch):
    """Sliced and aggregated querysets are streamed, and empty ones."""
    assert [row.username async for row in stream(IN_ORDER[3:8], 2)] == NAMES[3:8]
    groups = User.objects.values("is_active").annotate(users=Count("pk")).order_by()
    assert [row async for row in stream(groups)] == [{"is_active": True, "users": ROWS}]
    assert [row async for row in stream(User.objects.none())] == []
    assert [row async for row in stream(User.objects.filter(username="nobody"))] == []


async def test_at_most_two_chunks_are_alive(watch):
    """However many rows there are, two chunks of them are alive at the most."""
    alive, made, most = weakref.WeakSet(), [], []
    fetched = watch.rows()

    class Counted(fetched._iterable_class):
        def __iter__(self):
            for row in super().__iter__():
                alive.add(row)
                made.append(None)
                yield row

    fetched._iterable_class = Counted
    seen = 0
    async for _row in stream(fetched, 2):
        seen += 1
        # Once the next chunk is there, or all are.
        await until(lambda: len(made) >= min(2 * ((seen + 1) // 2) + 2, ROWS))  # noqa: B023
        most.append(len(alive))
    assert most == [4, 4, 4, 4, 4, 4, 4, 4, 2, 2]


async def test_next_chunk_is_fetched_meanwhile(watch, gate):
    """The next chunk is fetched while the caller works on this one, and no more than that."""
    watch.gates = {3: gate}
    iterator = aiter(stream(watch.rows(), 3))
    assert (await anext(iterator)).username == NAMES[0]
    await gate.entered()
    # The fetch has not ended, and these rows are there.
    assert [(await anext(iterator)).username for _ in range(2)] == NAMES[1:3]
    waiting = asyncio.ensure_future(anext(iterator))
    await asyncio.sleep(0)
    assert not waiting.done()
    gate.open.set()
    assert (await waiting).username == NAMES[3]
    await until(lambda: len(watch.fetched) == 9)
    assert (await anext(iterator)).username == NAMES[4]
    await database_sync_to_async(len)("")  # in line behind what else were fetched
    assert watch.fetched == list(range(9))


async def test_prefetch_related_for_each_chunk(watch):
    """``prefetch_related()`` makes one query for each chunk, with ``raw()`` too."""
    groups = await database_sync_to_async(Group.objects.create)(name="all")
    await database_sync_to_async(groups.user_set.set)(await database_sync_to_async(list)(IN_ORDER))
    prefetch = Prefetch("groups", to_attr="in_groups")
    for queryset in (
        IN_ORDER.prefetch_related(prefetch),
        User.objects.raw("SELECT * FROM auth_user ORDER BY username").prefetch_related(prefetch),
    ):
        queries = []

        def note(execute, sql, *args, queries=queries):
            queries.append(sql)
            return execute(sql, *args)

        async with pinned():
            await database_sync_to_async(lambda: connection.execute_wrappers.append(note))()
            seen = [[group.name for group in row.in_groups] async for row in stream(queryset, 4)]
            await database_sync_to_async(lambda: connection.execute_wrappers.remove(note))()
        assert seen == [["all"]] * ROWS
        assert len([sql for sql in queries if "auth_group" in sql]) == 3


async def test_error_follows_the_rows_before_it(watch, pool_settings):
    """An error comes once, after the rows before it, and no cursor stays open in its traceback."""
    pool_settings(MAX_THREADS=1)

    class Broken(User):
        class Meta:
            proxy = True
            app_label = "auth"

        @classmethod
        def from_db(cls, db, field_names, values, **kwargs):
            row = super().from_db(db, field_names, values, **kwargs)
            if row.username == NAMES[5]:
                raise LookupError(row.username)
            return row

    for queryset in (
        Broken.objects.order_by("username"),
        Broken.objects.raw("SELECT * FROM auth_user ORDER BY username"),
    ):
        iterator = aiter(stream(queryset, 3))
        assert [(await anext(iterator)).username for _ in range(5)] == NAMES[:5]
        with pytest.raises(LookupError, match="user 5") as caught:
            await anext(iterator)
        assert await database_sync_to_async(server_side_cursors)() in (None, 0)
        with pytest.raises(StopAsyncIteration):
            await anext(iterator)
        del caught
    await no_worker_is_leased()


@pytest.mark.parametrize(
    ("parameter", "parameters"), [("%s", lambda it: [it]), ("%(at)s", lambda it: {"at": it})]
)
async def test_parameters_of_raw_are_what_the_database_knows(watch, parameter, parameters):
    """A datetime of another time zone compares as it does in Django's own raw()."""
    at = datetime(2024, 1, 1, 2, tzinfo=timezone(timedelta(hours=3)))
    await database_sync_to_async(User.objects.filter(username=NAMES[0]).update)(date_joined=at)
    sql = f"SELECT * FROM auth_user WHERE date_joined = {parameter}"
    rows = stream(User.objects.raw(sql, parameters(at)))
    assert [row.username async for row in rows] == NAMES[:1]


async def test_query_that_fails(watch):
    """A query that the database refuses raises its error, and leaves nothing behind."""
    with pytest.raises(DatabaseError):
        async for _ in stream(User.objects.raw("SELECT nonsense FROM nowhere")):
            pass
    await no_worker_is_leased()


async def test_error_read_ahead_is_dropped_with_its_rows(watch, caplog):
    """An error that was read ahead when the loop is left is nobody's."""
    watch.gates = {2: mock.Mock(side_effect=LookupError)}
    async for _ in stream(watch.rows(), 2):
        await until(lambda: watch.closed)
        await database_sync_to_async(len)("")  # its outcome comes after that of the fetch
        break
    gc.collect()
    await no_worker_is_leased()
    assert caplog.records == []


async def test_variables_go_in(watch):
    """Rows are made in the context variables of the task that asks for them."""
    variable = contextvars.ContextVar("variable", default="unset")
    seen = []
    watch.gates = {number: lambda: seen.append(variable.get()) for number in range(ROWS)}
    variable.set("set")
    async for _ in stream(watch.rows(), 4):
        pass
    assert set(seen) == {"set"}


async def test_one_stream_is_iterated_on_once(watch):
    """Iterating on a stream a second time is refused; its iterator may go on."""
    once = stream(watch.rows(), 3)
    async for _ in once:
        break
    with pytest.raises(RuntimeError, match=r"stream of auth\.User can be iterated on once, by one"):
        aiter(once)
    with pytest.raises(RuntimeError, match="can be iterated on once"):
        async with once:
            pass


def test_another_event_loop(watch):
    """A stream that goes on in another event loop says so, and closing it there ends."""

    async def begin():
        await anext(rows)

    async def go_on():
        with pytest.raises(RuntimeError, match=r"stream of auth\.User was begun in another event"):
            [row async for row in rows]
        await rows.aclose()

    rows = aiter(stream(watch.rows(), 2))
    asyncio.run(begin())
    asyncio.run(go_on())
    asyncio.run(until(lambda: watch.closed == ["ormbridge-worker-1"]))


async def test_two_tasks_at_one_time(watch, gate):
    """A task that asks for a row while another waits for one is refused; the other gets its row."""
    watch.gates = {0: gate}
    iterator = aiter(stream(watch.rows(), 3))
    first = asyncio.create_task(anext(iterator))
    await gate.entered()
    with pytest.raises(RuntimeError, match=r"stream of auth\.User is iterated on by two tasks at"):
        await anext(iterator)
    gate.open.set()
    assert (await first).username == NAMES[0]
    assert [row.username async for row in iterator] == NAMES[1:]


@pytest.mark.parametrize("wrong", [User.objects, User, [1, 2], None, "SELECT 1"])
def test_something_else_is_refused(wrong):
    """What is no queryset is refused, with what to do about a manager."""
    with pytest.raises(TypeError, match=r"takes a QuerySet or a RawQuerySet, and .* is none; a ma"):
        stream(wrong)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, "2000", None, True])
def test_chunk_size_is_a_positive_int(wrong):
    """A chunk has a whole number of rows, one or more."""
    with pytest.raises(ValueError, match=r"chunk_size must be an int of 1 or more, and .* is not"):
        stream(User.objects.all(), wrong)


if CHOICE == "postgresql":  # other databases have no server-side cursors, or Django uses none
    from django.db.backends.postgresql.base import ServerSideCursor

    @pytest.mark.parametrize("kind", ["models", "values", "flat", "raw", "raw by name"])
    async def test_server_side_cursor(watch, pool_settings, kind):
        """Rows of every kind are read from a server-side cursor, which is gone after the loop."""
        pool_settings(MAX_THREADS=1)
        async for _ in stream(QUERYSETS[kind][0], 2):
            assert await database_sync_to_async(server_side_cursors)() == 1
            break
        assert await database_sync_to_async(server_side_cursors)() == 0

    @pytest.mark.parametrize("kind", ["models", "raw"])
    async def test_server_side_cursors_disabled(watch, pool_settings, connection_settings, kind):
        """DISABLE_SERVER_SIDE_CURSORS is honoured: all rows are then in memory."""
        pool_settings(MAX_THREADS=1)
        connection_settings(DISABLE_SERVER_SIDE_CURSORS=True)
        async for _ in stream(QUERYSETS[kind][0], 2):
            assert await database_sync_to_async(server_side_cursors)() == 0
            break

    async def test_cursors_are_closed_before_their_block_ends(watch, pool_settings, monkeypatch):
        """A savepoint that is rolled back takes its cursors along: none is closed after that."""
        pool_settings(MAX_THREADS=1)
        closing, close = Gate(), ServerSideCursor.close

        def close_the_first_slowly(cursor):
            if not closing.threads:
                closing()
            close(cursor)

        monkeypatch.setattr(ServerSideCursor, "close", close_the_first_slowly)

        @atomic()
        async def fail():
            async for _ in stream(User.objects.all(), 2):
                async for _ in stream(User.objects.all(), 2):
                    break
                await closing.entered()
                # As soon as the end of the block is in line.
                asyncio.get_running_loop().call_soon(closing.open.set)
                raise KeyError

        async with atomic():
            with pytest.raises(KeyError):
                await fail()
            assert await User.objects.acount() == 10

    async def test_cancelled_task_cancels_the_statement(watch, pool_settings):
        """The statement that a cancelled task waits for is cancelled, and the worker free again."""
        pool_settings(MAX_THREADS=1)
        slow = User.objects.raw("SELECT id, username, pg_sleep(3600) FROM auth_user")
        waiting = asyncio.create_task(anext(aiter(stream(slow, 1))))
        await until(lambda: stats().holders)
        await asyncio.to_thread(wait_for_sleep)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        await no_worker_is_leased()
        assert await database_sync_to_async(server_side_cursors)() == 0

    def wait_for_sleep():
        try:
            with connection.cursor() as cursor:
                for _ in range(int(GUARD * 100)):
                    cursor.execute(
                        "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                        " AND datname = current_database()"
                        " AND state = 'active' AND query LIKE '%pg_sleep(3600)%'"
                    )
                    if cursor.fetchone()[0]:
                        return
                    time.sleep(0.01)
        finally:
            connection.close()

    async def test_raw_rows_come_by_the_chunk(watch, pool_settings):
        """A raw query asks the server for a chunk at a time, not for every row."""
        pool_settings(MAX_THREADS=1)
        asked, fetch = [], ServerSideCursor.fetchmany
        with mock.patch.object(ServerSideCursor, "fetchmany", autospec=True) as fetchmany:
            fetchmany.side_effect = lambda cursor, size: asked.append(size) or fetch(cursor, size)
            assert len([row async for row in stream(QUERYSETS["raw"][0], 4)]) == ROWS
        assert asked == [4, 4, 4, 4]

    async def test_raw_query_whose_first_fetch_fails(watch, pool_settings):
        """A query that fails only as its first rows are fetched has closed its cursor, too."""
        pool_settings(MAX_THREADS=1)
        rows = User.objects.raw("SELECT id, 1 / (0 * id) FROM auth_user")
        closed, close = [], ServerSideCursor.close
        with mock.patch.object(ServerSideCursor, "close", autospec=True) as closing:
            closing.side_effect = lambda cursor: closed.append(close(cursor))
            async with atomic():
                with pytest.raises(DatabaseError, match="division by zero"):
                    await anext(aiter(stream(rows)))
                await database_sync_to_async(transaction.set_rollback)(True)
        assert closed


if CHOICE == "mariadb":  # what Django's cursors are is a matter of the driver
    from MySQLdb.cursors import CursorStoreResultMixIn

    async def test_driver_has_the_whole_result(watch):
        """The driver has all rows in memory before the first one, whatever the chunk."""
        async for _ in stream(watch.rows(), 2):
            cursors = await database_sync_to_async(lambda: connection.connection.cursorclass)()
            assert issubclass(cursors, CursorStoreResultMixIn)


if CHOICE == "sqlite":
    import sqlite3

    async def test_sqlite_write_in_a_transaction(watch):
        """In ``atomic()``, with IMMEDIATE, nobody writes between reading and writing."""
        path = connection.settings_dict["NAME"]

        def try_to_write():
            other = sqlite3.connect(path, timeout=0)
            try:
                with other:
                    other.execute("UPDATE auth_user SET email = 'other'")
            finally:
                other.close()

        async with atomic():
            async for user in stream(watch.rows(), 2):
                with pytest.raises(sqlite3.OperationalError, match="database is locked"):
                    await asyncio.to_thread(try_to_write)
                user.email = "own"
                await user.asave()
        assert await User.objects.filter(email="own").acount() == ROWS
        await asyncio.to_thread(try_to_write)
        assert await User.objects.filter(email="other").acount() == ROWS
