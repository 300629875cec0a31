"""Iterations that are suspended, left or dropped: whose worker they keep, and how long."""

import asyncio
import contextlib
import gc
import itertools
import threading
from unittest import mock

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import (
    DatabaseError,
    DataError,
    InterfaceError,
    connection,
    connections,
    transaction,
)
from django.db.models.query import BaseIterable
from django.http import HttpResponse, StreamingHttpResponse

from ormbridge import (
    BridgeMiddleware,
    atomic,
    database_sync_to_async,
    pinned,
    stats,
)
from ormbridge.leases.generators import SuspendedGenerators
from tests.core.gate import GUARD
from tests.core.support import no_worker_is_leased, thread_name, until
from tests.settings import CHOICE
from tests.support import applications
from tests.support.blocks import turns
from tests.support.canceller import cancelled, in_context
from tests.support.green import on_threads
from tests.support.http import connect, disconnect, get, say
from tests.support.left import alive


def five_rows(closed):
    """Return an iteration of Django's; *closed* gets the name of the thread where it is closed."""

    class Rows(BaseIterable):
        def __iter__(self):
            try:
                yield from range(5)
            finally:
                closed.append(thread_name())

    return Rows(None, chunk_size=2)


@pytest.mark.django_db(transaction=True)
async def test_suspended_generator_keeps_its_worker():
    """Between the chunks of aiterator() the worker stays; calls in between run on it too."""
    users = [User(username=str(number)) for number in range(5)]
    await database_sync_to_async(User.objects.bulk_create)(users)

    async def answer(text):
        threads, leased, rows = set(), set(), 0
        async for _ in User.objects.aiterator(chunk_size=2):
            rows += 1
            leased.add(len(stats().holders))
            threads.add(await sync_to_async(thread_name)())
        await no_worker_is_leased()
        return rows, len(threads), leased

    socket = await connect(applications.serve(answer))
    assert await say(socket) == "(5, 1, {0, 1})"
    await disconnect(socket)


@pytest.mark.django_db(transaction=True)
async def test_collected_generator_gives_its_worker_back():
    """A generator that is left early keeps its worker until it is collected."""

    def numbers():
        yield from range(10)

    async def answer(text):
        generator = numbers()
        await sync_to_async(next)(generator, None)
        kept = len(stats().holders)
        del generator
        gc.collect()
        await no_worker_is_leased()
        return kept

    socket = await connect(applications.serve(answer))
    assert await say(socket) == "1"
    await disconnect(socket)


async def test_iteration_left_early_is_closed_on_its_worker():
    """The cursor of an aiterator() that is left early is closed on the worker, not on the loop."""
    closed = []

    async def answer(text):
        rows = []
        async for row in five_rows(closed):
            rows.append(row)
            break
        return rows[0]

    socket = await connect(applications.serve(answer))
    assert await say(socket) == "0"
    await disconnect(socket)
    gc.collect()
    await no_worker_is_leased()
    assert closed == ["ormbridge-worker-1"]


async def test_iteration_below_a_synchronous_frame_is_closed_on_its_worker(serve):
    """What is left early below a sync view is closed on its worker, as its request ends."""
    closed = []

    async def first():
        async for row in five_rows(closed):
            return row
        return None

    def view(request):
        return HttpResponse(f"{async_to_sync(first)()} {thread_name()}")

    assert await get(serve(view)) == "200 0 ormbridge-worker-1"
    await no_worker_is_leased()
    gc.collect()
    assert closed == ["ormbridge-worker-1"]


async def chunks(look):
    async for _ in five_rows([]):
        look()


async def chunks_below_a_frame(look):
    await sync_to_async(async_to_sync(chunks))(look)


async def steps(look):
    numbers = iter_of(range(1, 5))
    while await database_sync_to_async(next)(numbers, None):
        look()


def iter_of(numbers):
    yield from numbers


@pytest.mark.parametrize("iterate", [chunks, chunks_below_a_frame, steps])
async def test_chunks_leave_nothing_to_the_collector(iterate):
    """What a chunk of an iteration has is freed with the next one."""
    seen = []
    gc.collect()
    gc.disable()
    try:
        async with in_context():
            await iterate(lambda: seen.append(alive()["Iteration"]))
    finally:
        gc.enable()
    assert (len(seen) > 3, max(seen)) == (True, 1)


async def test_iteration_that_never_begins_leaves_nothing_to_the_collector(gate, pool_settings):
    """Nor does a step that was given up while it waited for its turn; nor does a timer keep it."""
    pool_settings(TIMEOUT=1e9)
    before = alive()
    gc.collect()
    gc.disable()
    try:
        async with in_context(holds=True):
            running = asyncio.create_task(database_sync_to_async(gate)())
            await gate.entered()
            for _ in range(3):
                step = asyncio.create_task(database_sync_to_async(next)(iter_of([1])))
                await turns()
                await cancelled(step)
            del step
            gate.open.set()
            await running
        del running
        await no_worker_is_leased()
        await until(lambda: not alive() - before)
    finally:
        gc.enable()


async def test_iteration_that_outlives_its_synchronous_frame(serve):
    """An iteration begun below sync middleware goes on in the body of the response."""

    class Rows(BaseIterable):
        def __iter__(self):
            for row in range(5):
                yield row, thread_name()

    async def view(request):
        rows = aiter(Rows(None, chunk_size=2))
        first = await anext(rows)

        async def body():
            yield f"{first} "
            async for row in rows:
                yield f"{row} "

        return StreamingHttpResponse(body())

    answer = await get(serve(view, "tests.support.applications.SyncOnly"))
    assert answer == " ".join(["200", *(f"{(n, 'ormbridge-worker-1')}" for n in range(5))])


async def test_iteration_goes_on_after_a_frame_that_took_some_of_it():
    """A block below a frame in the body of an iteration may ask for rows, and ends with them."""

    class Rows(BaseIterable):
        def __iter__(self):
            yield from range(3)

    async def inside():
        async with pinned():
            return await anext(rows)

    async with in_context(holds=True):
        rows = aiter(Rows(None, chunk_size=1))
        assert await anext(rows) == 0
        assert await sync_to_async(async_to_sync(inside))() == 1
        assert [row async for row in rows] == [2]


async def test_generator_outlives_its_socket():
    """A task that goes on with a suspended generator after the socket closed keeps its worker."""
    go_on = asyncio.Event()
    tasks = []

    def threads():
        while True:
            yield thread_name()

    async def iterate():
        generator = threads()
        first = await sync_to_async(next)(generator, None)
        await go_on.wait()
        kept = len(stats().holders)
        second = await sync_to_async(next)(generator, None)
        await sync_to_async(generator.close)()
        return first == second, kept

    async def answer(text):
        tasks.append(asyncio.create_task(iterate()))

    socket = await connect(applications.serve(answer))
    await say(socket)
    await until(lambda: stats().holders)
    await disconnect(socket)
    go_on.set()
    assert await tasks[0] == (True, 1)
    tasks.clear()
    gc.collect()
    await no_worker_is_leased()


@on_threads
async def test_generators_of_two_workers_go_on_where_they_are():
    """Where a socket has two leases, the one that has a generator is asked for more of it."""
    both = threading.Barrier(2)

    def threads():
        both.wait(GUARD)
        while True:
            yield thread_name()

    step = sync_to_async(next)
    one, other = threads(), threads()
    async with in_context():
        begun = await asyncio.gather(step(one, None), step(other, None))
        assert begun[0] != begun[1]
        assert [await step(one, None), await step(other, None)] == begun
        assert [await step(other, None), await step(one, None)] == begun[::-1]


async def test_generator_that_outlives_its_request_keeps_no_worker(pool_settings):
    """What a request leaves suspended keeps its worker to the end of the request, not longer."""
    pool_settings(MAX_THREADS=2)

    def numbers():
        yield from range(10)

    shared = numbers()

    async def application(scope, receive, send):
        number = await sync_to_async(next)(shared)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(number).encode()})

    application = BridgeMiddleware(application)
    for number in range(5):
        assert await get(application) == f"200 {number}"
        await no_worker_is_leased()


async def test_generator_let_go_of_before_its_worker_rests_keeps_no_worker(gate, monkeypatch):
    """A request that ends while its worker goes to rest has that look again."""
    close_unused, times = SuspendedGenerators.close_unused, itertools.count(1)

    def close_and_wait(self):
        close_unused(self)
        if next(times) == 3:  # before the call, after it, and before the rest
            gate()

    monkeypatch.setattr(SuspendedGenerators, "close_unused", close_and_wait)
    left = (number for number in range(10))

    async def application(scope, receive, send):
        await sync_to_async(next)(left)
        await gate.entered()

    scope = {"type": "http", "method": "GET", "path": "/"}
    await BridgeMiddleware(application)(scope, mock.AsyncMock(), mock.AsyncMock())
    gate.open.set()
    await no_worker_is_leased()


async def test_iteration_of_a_client_that_left_keeps_no_worker():
    """Where something keeps the iteration of an ended request alive, its worker is free."""
    cycle = []

    class Rows(BaseIterable):
        def __iter__(self):
            yield from range(5)

    async def application(scope, receive, send):
        rows = aiter(Rows(None, chunk_size=2))
        cycle.append(rows)
        await anext(rows)

    scope = {"type": "http", "method": "GET", "path": "/"}
    await BridgeMiddleware(application)(scope, mock.AsyncMock(), mock.AsyncMock())
    await no_worker_is_leased()


async def test_iteration_of_a_task_that_has_ended_keeps_no_worker():
    """So it is where another task of the request has iterated, which something keeps as well."""
    kept = []

    async def application(scope, receive, send):
        rows = aiter(five_rows([]))
        task = asyncio.ensure_future(anext(rows))
        kept.extend([rows, task])
        await task

    scope = {"type": "http", "method": "GET", "path": "/"}
    await BridgeMiddleware(application)(scope, mock.AsyncMock(), mock.AsyncMock())
    await no_worker_is_leased()


@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.django_db(transaction=True)
async def test_iteration_of_an_inner_block_that_is_rolled_back(goes_on):
    """Its cursor is closed before the savepoint takes it away: the block around is whole."""
    users = [User(username=str(number)) for number in range(5)]
    await User.objects.abulk_create(users)

    async with atomic():
        with contextlib.suppress(ZeroDivisionError):
            async with atomic():
                rows = User.objects.aiterator(chunk_size=2)
                await anext(rows)
                raise ZeroDivisionError
        if goes_on:
            await anext(rows)  # the other one of its chunk
            with pytest.raises((DatabaseError, InterfaceError, TypeError)):  # the cursor is closed
                await anext(rows)
        del rows
        gc.collect()
        await asyncio.sleep(0.01)  # the loop closes it
        await User.objects.acreate(username="saved")
    assert await User.objects.filter(username="saved").aexists()


@pytest.mark.django_db(transaction=True)
async def test_iteration_of_a_savepoint_of_a_function_that_is_rolled_back():
    """So it is where a synchronous atomic() around a frame is rolled back, in a block."""
    users = [User(username=str(number)) for number in range(5)]
    await User.objects.abulk_create(users)

    async def leave():
        async for _ in User.objects.aiterator(chunk_size=2):
            raise ZeroDivisionError

    def function():
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            async_to_sync(leave)()

    async with atomic():
        await database_sync_to_async(function)()
        await User.objects.acreate(username="saved")
    assert await User.objects.filter(username="saved").aexists()


@pytest.mark.skipif(CHOICE == "sqlite", reason="its two databases are one file")
@pytest.mark.django_db(transaction=True, databases=["default", "other"])
async def test_iteration_beside_a_savepoint_of_another_database(own_pool):
    """It goes on where a savepoint of the same name is rolled back on another connection."""
    users = [User(username=str(number)) for number in range(5)]
    await database_sync_to_async(User.objects.bulk_create)(users)

    async with atomic(), atomic():
        rows = User.objects.order_by("pk").aiterator(chunk_size=2)
        names = [(await anext(rows)).username]
        async with atomic("other"):
            with contextlib.suppress(ZeroDivisionError):
                async with atomic("other"):
                    raise ZeroDivisionError
        names += [user.username async for user in rows]
    assert names == ["0", "1", "2", "3", "4"]


@pytest.mark.skipif(CHOICE != "postgresql", reason="no other has cursors on the server")
@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("around", [pinned(), atomic("other")])
@pytest.mark.parametrize("of_psycopg", [None, {"pool": {"min_size": 1, "max_size": 1}}])
async def test_cursor_that_is_let_go_of_in_an_aborted_transaction(
    pool_settings, connection_settings, around, of_psycopg
):
    """One that is older than the transaction is gone when the lease has ended, all the same."""
    pool_settings(MAX_THREADS=1)
    if of_psycopg:
        connection_settings(CONN_MAX_AGE=0, OPTIONS=of_psycopg)
    users = [User(username=str(number)) for number in range(5)]
    await database_sync_to_async(User.objects.bulk_create)(users)

    def fail():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")

    def cursors():
        with connection.cursor() as cursor:
            cursor.execute("SELECT statement FROM pg_cursors WHERE is_holdable")
            return cursor.fetchall()

    async with around:
        rows = User.objects.aiterator(chunk_size=2)
        await anext(rows)
        assert len(await database_sync_to_async(cursors)()) == 1
        with contextlib.suppress(DataError):
            async with atomic():
                try:
                    await database_sync_to_async(fail)()
                finally:
                    await rows.aclose()
                    await database_sync_to_async(thread_name)()  # the worker closes it before this
    assert await database_sync_to_async(cursors)() == []
    if of_psycopg:
        await database_sync_to_async(lambda: connections["default"].close_pool())()
