"""``stream()``: bounded memory, read ahead by one chunk, and a cursor that is closed in time."""

import asyncio
import contextvars
import gc
import threading
import time
import weakref
from unittest import mock

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group, User
from django.core.handlers.asgi import ASGIHandler
from django.db import DatabaseError, connection, transaction
from django.db.models import Count, Prefetch
from django.db.models.functions import Length
from django.db.models.query import ModelIterable
from django.http import StreamingHttpResponse
from django.test import TestCase
from django.urls import path

from ormbridge import (
    BridgeMiddleware,
    LeaseClosed,
    PoolClosed,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
    release,
    stats,
    stream,
)
from ormbridge.call import Call, _expire
from ormbridge.context import place
from ormbridge.mailbox import mailbox_of
from ormbridge.process import default_pool
from tests.blocks import set_timeout
from tests.gate import GUARD
from tests.guide.http import connect, disconnect, get, request, say
from tests.settings import CHOICE
from tests.test_call import until
from tests.test_context import no_worker_is_leased, serve, thread_name

pytestmark = pytest.mark.django_db(transaction=True)

ROWS = 10


class Watch:
    """Sees where and when the cursors of its queryset are opened and closed."""

    def __init__(self):
        self.fetched = []
        self.opened = []
        self.closed = []
        self.gates = {}

    def rows(self):
        """Return a queryset whose rows come from a watched cursor, in the order of their names."""
        watch = self

        class Watched(ModelIterable):
            def __iter__(self):
                watch.opened.append(thread_name())
                try:
                    for number, row in enumerate(super().__iter__()):
                        if number in watch.gates:
                            watch.gates[number]()
                        watch.fetched.append(number)
                        yield row
                finally:
                    watch.closed.append(thread_name())

        queryset = User.objects.order_by("username")
        queryset._iterable_class = Watched
        return queryset

    def open(self):
        """Return how many cursors are open. Called on the thread of the cursors."""
        count = len(self.opened) - len(self.closed)
        assert server_side_cursors() in (None, count)
        return count


def server_side_cursors():
    """Return how many server-side cursors the calling thread has open; None if unknown."""
    if CHOICE != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_cursors WHERE name LIKE '_django_curs_%'")
        return cursor.fetchone()[0]


@pytest.fixture
def watch(transactional_db):
    """Make ten users, and return what watches the cursors over them."""
    make_users()
    return Watch()


def make_users():
    User.objects.bulk_create(User(username=f"user {number}") for number in range(ROWS))


NAMES = [f"user {number}" for number in range(ROWS)]
IN_ORDER = User.objects.order_by("username")
QUERYSETS = {
    "models": (IN_ORDER, lambda row: row.username),
    "values": (IN_ORDER.values("username"), lambda row: row["username"]),
    "tuples": (IN_ORDER.values_list("username", "pk"), lambda row: row[0]),
    "flat": (IN_ORDER.values_list("username", flat=True), str),
    "named": (IN_ORDER.values_list("username", named=True), lambda row: row.username),
    "raw": (
        User.objects.raw("SELECT * FROM auth_user WHERE username LIKE %s ORDER BY 5", ["user%"]),
        lambda row: row.username,
    ),
    "raw by name": (
        User.objects.raw(
            "SELECT id, username, %(extra)s AS extra FROM auth_user ORDER BY 2", {"extra": "more"}
        ),
        lambda row: row.username if row.extra == "more" else None,
    ),
    "raw without parameters": (
        User.objects.raw(
            "SELECT id AS pk, username AS name FROM auth_user ORDER BY 2",
            translations={"pk": "id", "name": "username"},
        ),
        lambda row: row.username,
    ),
    "raw with params=None": (
        User.objects.raw("SELECT * FROM auth_user ORDER BY username", params=None),
        lambda row: row.username,
    ),
    "combined": (
        User.objects.filter(username__lt="user 5")
        .union(User.objects.filter(username__gte="user 5"))
        .order_by("username"),
        lambda row: row.username,
    ),
    "reversed": (User.objects.order_by("-username").reverse(), lambda row: row.username),
    "annotated": (IN_ORDER.annotate(size=Length("username")), lambda row: row.username),
    "other database": (IN_ORDER.using("other"), lambda row: row.username),
}


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


async def test_break_closes_the_cursor(watch, pool_settings):
    """Leaving a loop by ``break`` closes its cursor, on its thread, before what runs there next."""
    pool_settings(MAX_THREADS=1)
    async for row in stream(watch.rows(), 2):
        assert row.username == NAMES[0]
        assert await database_sync_to_async(watch.open)() == 1
        break
    assert await database_sync_to_async(watch.open)() == 0
    assert watch.closed == ["ormbridge-worker-1"]
    await no_worker_is_leased()


async def test_cursor_is_closed_before_the_next_call(watch, pool_settings):
    """After ``break`` the worker closes the cursor first, even if the loop is busy."""
    pool_settings(MAX_THREADS=1)
    seen, ran = [], threading.Event()

    def look():
        seen.append(watch.open())
        ran.set()

    async for _ in stream(watch.rows(), 2):
        await until(lambda: len(watch.fetched) == 4)
        break
    place(Call(look, look, mailbox_of(asyncio.get_running_loop())))
    assert ran.wait(GUARD)
    assert seen == [0]


async def test_exception_closes_the_cursor(watch, pool_settings):
    """So does an exception in the body, even while somebody still has it."""
    pool_settings(MAX_THREADS=1)

    async def fail():
        async for _ in stream(watch.rows(), 2):
            raise LookupError

    with pytest.raises(LookupError) as caught:
        await fail()
    assert await database_sync_to_async(watch.open)() == 0
    assert watch.closed == ["ormbridge-worker-1"]
    assert caught.value is not None


async def test_cancellation_of_the_body_closes_the_cursor(watch, pool_settings):
    """So does cancelling a task that waits in the body."""
    pool_settings(MAX_THREADS=1)
    working = asyncio.Event()

    async def work():
        async for _ in stream(watch.rows(), 2):
            working.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await working.wait()
    task.cancel()
    await asyncio.wait([task])
    assert await database_sync_to_async(watch.open)() == 0
    assert watch.closed == ["ormbridge-worker-1"]


async def test_read_ahead_is_not_stopped(watch, gate, pool_settings):
    """A fetch that runs as the loop is left runs to its end; then the cursor is closed."""
    pool_settings(MAX_THREADS=1)
    watch.gates = {2: gate}
    async for _ in stream(watch.rows(), 2):
        await gate.entered()
        break
    following = asyncio.create_task(database_sync_to_async(watch.open)())
    await asyncio.sleep(0)
    assert watch.closed == []
    gate.open.set()
    assert await following == 0
    assert watch.closed == ["ormbridge-worker-1"]
    assert watch.fetched == [0, 1, 2, 3]


async def test_cancelled_while_it_waits_for_rows(watch, gate, pool_settings):
    """A task that is cancelled while it waits for rows closes the stream, which then says so."""
    pool_settings(MAX_THREADS=1)
    watch.gates = {2: gate}
    iterator = aiter(stream(watch.rows(), 2))
    await anext(iterator)
    await anext(iterator)
    waiting = asyncio.create_task(anext(iterator))
    await gate.entered()
    waiting.cancel()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    gate.open.set()
    assert await database_sync_to_async(watch.open)() == 0
    with pytest.raises(
        RuntimeError,
        match=r"stream of auth\.User was closed when a task was cancelled that waited for its next",
    ):
        await anext(iterator)


async def test_cancelled_before_it_has_a_worker(watch, gate, pool_settings):
    """A stream that is cancelled while it waits for a worker never starts, and leaves the line."""
    pool_settings(MAX_THREADS=1)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    iterator = aiter(stream(watch.rows(), 2))
    waiting = asyncio.create_task(anext(iterator))
    await until(lambda: stats().waiting == 1)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert stats().waiting == 0
    gate.open.set()
    await running
    assert watch.opened == []
    assert stats().calls == 1


async def test_block_closes_the_cursor(watch, pool_settings):
    """Leaving ``async with stream()`` closes the cursor and waits until it is closed."""
    pool_settings(MAX_THREADS=1)
    async with stream(watch.rows(), 2) as rows:
        async for _ in rows:
            break
        assert await database_sync_to_async(watch.open)() == 1
        assert (await anext(rows)).username == NAMES[1]
    assert watch.closed == ["ormbridge-worker-1"]
    with pytest.raises(RuntimeError, match=r"^stream of auth\.User is closed$"):
        await anext(rows)
    await rows.aclose()  # again
    await no_worker_is_leased()


async def test_block_waits_for_what_runs(watch, gate):
    """Leaving the block waits for the fetch that runs; cancelling that wait leaves nothing open."""
    watch.gates = {2: gate}
    left = asyncio.Event()

    async def work():
        async with stream(watch.rows(), 2) as rows:
            await anext(rows)
            await gate.entered()
            left.set()

    task = asyncio.create_task(work())
    await left.wait()
    await asyncio.sleep(0)
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    gate.open.set()
    await no_worker_is_leased()
    assert watch.closed == ["ormbridge-worker-1"]


async def test_block_without_a_row(watch):
    """A block in which no row is asked for opens nothing."""
    async with stream(watch.rows()) as rows:
        pass
    assert watch.opened == []
    with pytest.raises(RuntimeError, match="is closed"):
        await anext(rows)
    assert stats().calls == 0


async def test_closed_while_another_task_waits(watch, gate):
    """A task that waits for rows is told that another one has closed the stream."""
    watch.gates = {0: gate}
    iterator = aiter(stream(watch.rows(), 2))
    waiting = asyncio.create_task(anext(iterator))
    await gate.entered()
    closing = asyncio.create_task(iterator.aclose())
    with pytest.raises(RuntimeError, match="is closed"):
        await waiting
    assert not closing.done()
    gate.open.set()
    await closing
    assert watch.closed == ["ormbridge-worker-1"]


async def test_closed_while_the_first_rows_wait_for_a_worker(watch, gate, pool_settings):
    """A stream that is closed before it has a worker waits for nothing."""
    pool_settings(MAX_THREADS=1)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    iterator = aiter(stream(watch.rows(), 2))
    waiting = asyncio.create_task(anext(iterator))
    await until(lambda: stats().waiting == 1)
    await iterator.aclose()
    assert stats().waiting == 0
    with pytest.raises(RuntimeError, match="is closed"):
        await waiting
    gate.open.set()
    await running
    assert watch.opened == []


async def test_collected_on_another_thread(watch, pool_settings):
    """A stream in a cycle is closed on its own thread, whichever thread collects it."""
    pool_settings(MAX_THREADS=1)
    cycle = [aiter(stream(watch.rows(), 2))]
    cycle.append(cycle)
    await anext(cycle[0])
    del cycle
    await asyncio.to_thread(gc.collect)
    await no_worker_is_leased()
    assert watch.closed == ["ormbridge-worker-1"]


def test_loop_ends_before_the_stream(watch, pool_settings):
    """A stream that outlives its event loop is closed on its worker when it is dropped."""
    pool_settings(MAX_THREADS=1)

    async def start():
        iterator = aiter(stream(watch.rows(), 2))
        await anext(iterator)
        return iterator

    iterator = asyncio.run(start())
    (worker,) = default_pool()._workers
    del iterator
    default_pool().close(refuse=True)
    assert not worker.is_alive()
    assert watch.closed == ["ormbridge-worker-1"]


def test_process_ends_before_the_stream(watch, pool_settings):
    """At exit the cursor of an open stream is closed on its worker, and nothing hangs."""
    pool_settings(MAX_THREADS=1)

    async def start():
        iterator = aiter(stream(watch.rows(), 2))
        await anext(iterator)
        await until(lambda: len(watch.fetched) == 4)
        await asyncio.to_thread(default_pool().close, refuse=True)
        assert watch.closed == ["ormbridge-worker-1"]
        assert (await anext(iterator)).username == NAMES[1]  # in hand
        names = [(await anext(iterator)).username for _ in range(2)]  # read ahead
        with pytest.raises(PoolClosed, match=r"stream of auth\.User.* came too late"):
            await anext(iterator)
        return names

    assert asyncio.run(start()) == NAMES[2:4]


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


async def test_calls_in_the_body_need_no_second_worker(watch, pool_settings):
    """With one worker, the body may call the bridge, open blocks, and iterate on other streams."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)
    names = []
    async for row in stream(watch.rows(), 2):
        names.append(await database_sync_to_async(thread_name)())
        async with atomic():
            await User.objects.filter(pk=row.pk).aupdate(first_name="seen")
        async for _ in stream(watch.rows(), 3):
            pass
        async for _ in stream(watch.rows(), 3):
            await asyncio.gather(*(save(row.pk) for _ in range(2)))
            break
    assert set(names) == {"ormbridge-worker-1"}
    assert await database_sync_to_async(User.objects.filter(first_name="seen").count)() == ROWS
    await no_worker_is_leased()
    assert len(watch.opened) == len(watch.closed) == 1 + 2 * ROWS


@atomic
async def save(pk):
    await User.objects.filter(pk=pk).aupdate(last_name="seen")


@atomic
async def save_and_fail(row):
    await row.asave()
    raise LookupError


async def test_stream_goes_on_as_the_one_around_it_ends(watch, pool_settings):
    """A stream that was opened in the body of another goes on without that one."""
    pool_settings(MAX_THREADS=1)
    outer = aiter(stream(watch.rows(), 2))
    await anext(outer)
    inner = aiter(stream(watch.rows(), 2))
    await anext(inner)
    await outer.aclose()
    assert [row.username async for row in inner] == NAMES[1:]
    assert watch.closed == ["ormbridge-worker-1"] * 2
    await no_worker_is_leased()


async def test_streams_one_after_the_other(watch, pool_settings):
    """Tasks started in the body of a second stream need no second worker either."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)
    for _ in range(2):
        async for _ in stream(watch.rows(), 3):
            await asyncio.gather(*(database_sync_to_async(len)("") for _ in range(2)))
    await no_worker_is_leased()


async def test_after_the_loop_calls_go_anywhere(watch, gate, pool_settings):
    """Once a stream has ended, calls of its task are on their own again."""
    pool_settings(MAX_THREADS=2)
    async for _ in stream(watch.rows(), 2):
        pass
    calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(2)]
    await gate.entered(2)
    gate.open.set()
    assert len(set(await asyncio.gather(*calls))) == 2


async def test_worker_is_free_while_the_last_chunk_is_worked_on(watch):
    """The worker goes back as the last row is read, not as it is worked on."""
    async for _ in stream(watch.rows(), ROWS + 1):
        await no_worker_is_leased()
        assert watch.closed == ["ormbridge-worker-1"]


async def test_in_a_transaction(watch, pool_settings):
    """In ``atomic()`` a stream sees the transaction, and its cursor is closed before the COMMIT."""
    pool_settings(MAX_THREADS=2)
    events = []
    async with atomic():
        await User.objects.filter(username=NAMES[0]).aupdate(first_name="changed")
        await database_sync_to_async(transaction.on_commit)(lambda: events.append(watch.open()))
        iterator = aiter(stream(watch.rows(), 2))
        assert (await anext(iterator)).first_name == "changed"
        async for row in stream(watch.rows(), 3):
            await User.objects.filter(pk=row.pk).aupdate(first_name="seen")
        async for _ in stream(watch.rows(), 3):
            break
        assert await database_sync_to_async(watch.open)() == 1
    assert events == [0]
    with pytest.raises(
        LeaseClosed,
        match=r"stream of auth\.User was opened in atomic\(\) at test_streaming\.py:\d+ in "
        r"test_in_a_transaction, which has ended, and was closed with it; iterate on it inside",
    ):
        await anext(iterator)
    assert set(watch.opened) == set(watch.closed) == {"ormbridge-worker-1"}
    assert await User.objects.filter(first_name="seen").acount() == ROWS
    await no_worker_is_leased()


async def test_straggler_is_told_that_its_block_has_ended(watch, gate):
    """A task that waits for rows while the block of its stream ends gets ``LeaseClosed``."""
    watch.gates = {2: gate}
    async with atomic():
        iterator = aiter(stream(watch.rows(), 2))
        await anext(iterator)
        await anext(iterator)
        waiting = asyncio.create_task(anext(iterator))
        await gate.entered()
        asyncio.get_running_loop().call_soon(gate.open.set)
    with pytest.raises(LeaseClosed, match="was opened in atomic"):
        await waiting
    assert watch.closed == ["ormbridge-worker-1"]


async def test_pinned(watch, pool_settings):
    """In ``pinned()`` a stream has the worker of the block, and ends with it."""
    pool_settings(MAX_THREADS=2)
    async with pinned():
        worker = await database_sync_to_async(thread_name)()
        iterator = aiter(stream(watch.rows(), 2))
        await anext(iterator)
    assert watch.opened == [worker]
    with pytest.raises(LeaseClosed, match=r"was opened in pinned\(\) at "):
        await anext(iterator)
    await no_worker_is_leased()
    assert watch.closed == [worker]


async def test_savepoint_that_is_rolled_back(watch):
    """A stream goes on after a savepoint in its body was rolled back."""
    names = []
    async with atomic():
        async for row in stream(watch.rows(), 2):
            names.append(row.username)
            with pytest.raises(LookupError):
                await save_and_fail(row)
    assert names == NAMES


async def test_rows_of_an_outer_stream_in_a_block(watch, pool_settings):
    """Inside a block the rows of a stream that was opened outside can be asked for."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)
    iterator = aiter(stream(watch.rows(), 2))
    names = [(await anext(iterator)).username]
    async with atomic():
        names += [(await anext(iterator)).username for _ in range(4)]
    names += [row.username async for row in iterator]
    assert names == NAMES


async def test_read_ahead_in_line_behind_a_block(watch, pool_settings):
    """A fetch that waits for the block in which its rows are asked for runs in the block."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)
    iterator = aiter(stream(watch.rows(), 2))
    names = [(await anext(iterator)).username]
    inside, in_line = asyncio.Event(), asyncio.Event()

    async def work():
        async with atomic():
            inside.set()
            await in_line.wait()
            assert watch.fetched == [0, 1, 2, 3]
            names.extend([(await anext(iterator)).username for _ in range(2)])

    task = asyncio.create_task(work())
    await inside.wait()
    names += [(await anext(iterator)).username for _ in range(2)]
    in_line.set()
    await task
    assert names == NAMES[:5]
    await iterator.aclose()


class InDjangosTestCase(TestCase):
    """A stream below the synchronous frame of Django's ``TestCase``."""

    @classmethod
    def setUpTestData(cls):
        make_users()

    async def test_stays_on_the_thread_of_the_test(self):
        """It reads on the thread of the test, and so in its transaction."""
        watch = Watch()
        names = []
        async for row in stream(watch.rows(), 2):
            names.append(row.username)
            assert await database_sync_to_async(User.objects.count)() == ROWS
            assert await User.objects.acount() == ROWS
        assert names == NAMES
        async with stream(watch.rows(), 2) as rows:
            await anext(rows)
        assert await sync_to_async(watch.open)() == 0
        async for _ in stream(watch.rows(), 2):
            break
        await until(lambda: len(watch.closed) == 3)
        async with atomic():
            iterator = aiter(stream(watch.rows(), 2))
            await anext(iterator)
        with pytest.raises(LeaseClosed, match="was opened in atomic"):
            await anext(iterator)
        assert await database_sync_to_async(watch.open)() == 0
        assert set(watch.opened) == set(watch.closed) == {"MainThread"}
        assert stats().threads == 0


def test_frame_that_ends_closes_the_cursor(watch):
    """A stream that outlives its synchronous frame is closed on the frame's thread, and says so."""
    kept = []

    async def below():
        kept.append(aiter(stream(watch.rows(), 2)))
        await anext(kept[0])
        kept.append(asyncio.ensure_future(go_on()))
        return "left"

    async def go_on():
        await asyncio.Event().wait()

    async def main():
        def frame():
            left = async_to_sync(below)()
            return left, watch.open()

        assert await sync_to_async(frame)() == ("left", 0)
        await anext(kept[0])  # in hand
        await anext(kept[0])  # read ahead
        await anext(kept[0])
        with pytest.raises(LeaseClosed, match="synchronous frame in which it was opened has ended"):
            await anext(kept[0])
        kept[1].cancel()

    asyncio.run(main())
    assert watch.opened == watch.closed
    assert not watch.closed[0].startswith("ormbridge-worker")


def test_chunks_of_a_frame_take_turns_with_its_calls(watch, gate):
    """A read-ahead that runs on the frame's thread as the frame ends is let finish."""
    watch.gates = {2: gate}

    async def below():
        async for _ in stream(watch.rows(), 2):
            await gate.entered()
            asyncio.get_running_loop().call_soon(gate.open.set)
            break

    async_to_sync(below)()
    assert watch.fetched == [0, 1, 2, 3]
    assert watch.opened == watch.closed == ["MainThread"]


def test_many_streams_below_one_frame_leave_nothing(watch):
    """What has to be done as a frame ends is taken back with each stream."""

    async def below():
        from ormbridge.frames import live_frame

        for _ in range(5):
            async for _ in stream(watch.rows(), 3):
                break
            assert [row async for row in stream(watch.rows(), 3)] != []
        frame = live_frame(asyncio.get_running_loop())
        await until(lambda: len(watch.closed) == 10)
        await asyncio.sleep(0)
        return len(frame._work_items.last)

    assert async_to_sync(below)() == 0


def test_cursor_is_closed_before_a_frame_commits(watch, gate):
    """Below a frame too the cursor is closed before the COMMIT, whatever runs as the block ends."""
    watch.gates = {2: gate}
    events = []

    async def below():
        async with atomic():
            await database_sync_to_async(transaction.on_commit)(lambda: events.append(watch.open()))
            iterator = aiter(stream(watch.rows(), 2))
            await anext(iterator)
            await gate.entered()
            asyncio.get_running_loop().call_soon(gate.open.set)
        return iterator

    async_to_sync(below)()
    assert events == [0]


def test_fetch_that_nobody_needs_does_not_run(watch, gate):
    """A fetch that is in line on a frame's thread when its stream is left reads nothing."""

    async def below():
        iterator = aiter(stream(watch.rows(), 2))
        await anext(iterator)
        await anext(iterator)
        await until(lambda: watch.fetched == [0, 1, 2, 3])
        busy = asyncio.create_task(sync_to_async(gate)())
        await gate.entered()
        await anext(iterator)  # has the next chunk fetched
        del iterator
        gate.open.set()
        await busy

    async_to_sync(below)()
    assert watch.fetched == [0, 1, 2, 3]
    assert watch.closed == ["MainThread"]


async def test_fetch_on_another_thread_is_refused(watch):
    """A fetch that asgiref hands to another thread, as a frame ends, does not touch the cursor."""
    iterator = aiter(stream(watch.rows(), 2))
    await anext(iterator)
    await until(lambda: len(watch.fetched) == 4)
    source, anchor = iterator._source, weakref.ref(iterator._anchor)
    with pytest.raises(LeaseClosed, match="has ended; iterate on it to its end there"):
        await asyncio.to_thread(source.next_chunk, anchor, source._chunks)
    assert [row.username async for row in iterator] == NAMES[1:]


async def test_frame_on_the_worker_of_the_stream(watch, pool_settings):
    """A frame that was entered on the stream's own worker can go on with it."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)
    iterator = aiter(stream(watch.rows(), 2))
    names = [(await anext(iterator)).username]

    async def below():
        names.extend([(await anext(iterator)).username for _ in range(5)])

    await database_sync_to_async(async_to_sync(below))()
    names += [row.username async for row in iterator]
    assert names == NAMES
    assert watch.opened == watch.closed == ["ormbridge-worker-1"]
    await no_worker_is_leased()


async def test_read_ahead_in_line_behind_a_frame(watch, gate, pool_settings):
    """A fetch that waits behind the frame in which its rows are asked for runs on the frame."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)
    watch.gates = {2: gate}
    iterator = aiter(stream(watch.rows(), 2))
    names = [(await anext(iterator)).username]
    await gate.entered()

    async def below():
        names.extend([(await anext(iterator)).username for _ in range(4)])

    framed = asyncio.create_task(database_sync_to_async(async_to_sync(below))())
    names.append((await anext(iterator)).username)
    await asyncio.sleep(0)
    gate.open.set()
    names.append((await anext(iterator)).username)  # its read-ahead is in line behind the frame
    await framed
    assert sorted(names) == NAMES[:7]
    await iterator.aclose()


@pytest.fixture
def site(settings):
    """Return a function that serves *view* under the middleware."""

    def serve_view(view, *middleware):
        settings.ROOT_URLCONF = (path("", view),)
        settings.MIDDLEWARE = [f"{__name__}.{each.__name__}" for each in middleware]
        return BridgeMiddleware(ASGIHandler())

    return serve_view


def sync_middleware(get_response):
    return lambda request: get_response(request)


@pytest.mark.parametrize("middleware", [[], [sync_middleware]])
async def test_in_a_request(watch, site, middleware):
    """A view's streaming response reads on the worker of its request."""
    workers = []

    async def view(request):
        workers.append(await sync_to_async(thread_name)())

        async def lines():
            async for row in stream(watch.rows(), 3):
                workers.append(await sync_to_async(thread_name)())
                yield f"{row.username},"

        return StreamingHttpResponse(lines())

    assert await get(site(view, *middleware)) == f"200 {','.join(NAMES)},"
    assert set(workers) == set(watch.opened) == set(watch.closed) == {"ormbridge-worker-1"}
    await no_worker_is_leased()


async def test_response_from_a_stream(watch, site):
    """A stream of strings is itself what a streaming response takes."""

    def view(request):
        return StreamingHttpResponse(stream(IN_ORDER.values_list("username", flat=True), 3))

    assert await get(site(view)) == f"200 {''.join(NAMES)}"
    await no_worker_is_leased()


@pytest.mark.parametrize("middleware", [[], [sync_middleware]])
async def test_client_that_leaves(watch, site, middleware):
    """When the client leaves a streaming response, the cursor is closed and the worker is free."""

    async def view(request):
        async def lines():
            async for row in stream(watch.rows(), 2):
                yield row.username
                await asyncio.Event().wait()

        return StreamingHttpResponse(lines())

    client = request(site(view, *middleware))
    await client.send_input({"type": "http.request"})
    await client.receive_output(GUARD)
    await client.receive_output(GUARD)
    await client.send_input({"type": "http.disconnect"})
    await client.wait(GUARD)
    await no_worker_is_leased()
    assert watch.closed == ["ormbridge-worker-1"]


async def test_view_that_streams_below_sync_middleware(watch, site):
    """An async view below sync middleware streams on the thread of the frame."""
    threads = []

    async def view(request):
        threads.extend([await sync_to_async(thread_name)() async for _ in stream(watch.rows(), 2)])
        iterator = aiter(stream(watch.rows(), 2))
        await anext(iterator)

        async def lines():
            try:
                async for row in iterator:
                    yield row.username
            except LeaseClosed as error:
                yield str(error)

        return StreamingHttpResponse(lines())

    body = await get(site(view, sync_middleware))
    assert body.endswith("opened has ended; iterate on it to its end there")
    assert set(threads) == set(watch.opened) == set(watch.closed) == {"ormbridge-worker-1"}
    await no_worker_is_leased()


async def test_in_a_socket(watch):
    """A socket keeps its worker while it streams, and calls in the body run there."""

    async def answer(text):
        threads, leased = set(), set()
        async for _ in stream(watch.rows(), 2):
            leased.add(len(stats().holders))
            threads.add(await sync_to_async(thread_name)())
            if text == "break" and len(leased) == 1 and threads:
                break
        await no_worker_is_leased()
        return sorted(threads)

    socket = await connect(serve(answer))
    assert await say(socket, "all") == "['ormbridge-worker-1']"
    assert await say(socket, "break") == "['ormbridge-worker-1']"
    await disconnect(socket)
    assert watch.closed == ["ormbridge-worker-1"] * 2


async def test_block_in_the_body_needs_no_second_worker(watch, pool_settings):
    """Not even in a socket where the stream of another task took the worker."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)

    async def first():
        async for _ in stream(watch.rows(), 2):
            begun.set()
            await go_on.wait()

    async def second():
        await begun.wait()
        async for _ in stream(watch.rows(), 2):
            async with atomic():
                await User.objects.acount()
            go_on.set()
        return "done"

    async def answer(text):
        return (await asyncio.gather(first(), second()))[1]

    begun, go_on = asyncio.Event(), asyncio.Event()
    socket = await connect(serve(answer))
    assert await say(socket, "both") == "done"
    await disconnect(socket)


async def test_socket_that_closes(watch):
    """What a socket that closes has left open is closed on its worker; who still has it is told."""
    kept = []

    async def answer(text):
        kept.append(aiter(stream(watch.rows(), 1)))
        await anext(kept[0])
        await until(lambda: watch.fetched == [0, 1])

    socket = await connect(serve(answer))
    await say(socket)
    await disconnect(socket)
    await no_worker_is_leased()
    assert watch.closed == ["ormbridge-worker-1"]
    assert (await anext(kept[0])).username == NAMES[1]  # read ahead
    with pytest.raises(LeaseClosed, match="is closed: the request, connection or"):
        await anext(kept[0])


async def test_task_that_outlives_its_request(watch):
    """A task that outlives its socket goes on with its stream, on the same worker."""
    go_on = asyncio.Event()
    tasks = []

    async def read():
        names = []
        async for row in stream(watch.rows(), 2):
            names.append(row.username)
            await go_on.wait()
        return names

    async def answer(text):
        tasks.append(asyncio.create_task(read()))

    socket = await connect(serve(answer))
    await say(socket)
    await until(lambda: watch.fetched)
    await disconnect(socket)
    go_on.set()
    assert await tasks[0] == NAMES
    assert watch.opened == watch.closed
    await no_worker_is_leased()


async def test_release_leaves_a_stream_alone(watch):
    """``release()`` in the body does not take the worker from the stream."""

    async def answer(text):
        count = 0
        async for _ in stream(watch.rows(), 2):
            await release()
            count += 1
        return count

    socket = await connect(serve(answer))
    assert await say(socket) == str(ROWS)
    await disconnect(socket)
    assert watch.opened == watch.closed == ["ormbridge-worker-1"]


async def test_fetch_that_waits_too_long(watch, gate, pool_settings):
    """A stream that gets no worker in time raises ``PoolTimeout``, which names it."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e-3)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    with pytest.raises(PoolTimeout, match="for a worker: 1 of 1 leased"):
        async for _ in stream(watch.rows()):
            pass
    set_timeout(GUARD)
    gate.open.set()
    await running
    async for _ in stream(watch.rows(), 2):
        assert "stream of auth.User" in str(stats().holders)
        break
    await no_worker_is_leased()


async def test_closed_as_its_fetch_is_refused(watch, gate, pool_settings):
    """A stream that is closed while the refusal of its fetch is on its way waits for nothing."""
    pool_settings(MAX_THREADS=1)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    iterator = aiter(stream(watch.rows()))
    waiting = asyncio.create_task(anext(iterator))
    await until(lambda: stats().waiting == 1)
    _expire([iterator._call])
    await iterator.aclose()
    with pytest.raises(RuntimeError, match="is closed"):
        await waiting
    gate.open.set()
    await running


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
