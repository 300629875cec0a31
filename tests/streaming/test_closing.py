"""A stream that is left, cancelled or dropped: its cursor is closed, on its thread."""

import asyncio
import contextvars
import gc
import threading
import weakref

import pytest

from ormbridge import (
    LeaseClosed,
    PoolClosed,
    database_sync_to_async,
    stats,
    stream,
)
from ormbridge.core.call import Call, _expire
from ormbridge.core.mailbox import mailbox_of
from ormbridge.core.process import default_pool, end
from ormbridge.core.route import place
from tests.core.gate import GUARD, block_until
from tests.core.support import no_worker_is_leased, until
from tests.support.blocks import beside
from tests.support.green import on_threads
from tests.support.rows import NAMES

pytestmark = pytest.mark.django_db(transaction=True)


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


@on_threads
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

    async def work(hold):
        async for _ in stream(watch.rows(), 2):
            await hold()

    async with beside(work) as task:
        task.cancel()
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
    await asyncio.sleep(0)  # it begins to wait; its rows may be on their way already
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


@on_threads
def test_loop_closed_while_rows_are_fetched(watch, gate, pool_settings):
    """A loop that was closed under a stream gives its worker back, once nobody has the rows."""
    pool_settings(MAX_THREADS=1)
    watch.gates = {0: gate}

    async def read():
        async for _ in stream(watch.rows(), 2):
            raise AssertionError("there are rows")

    async def begin():
        task = asyncio.create_task(read())
        await gate.entered()
        task._log_destroy_pending = False

    def run():
        loop = asyncio.new_event_loop()
        loop.run_until_complete(begin())
        loop.close()

    contextvars.Context().run(run)
    gate.open.set()
    block_until(lambda: gc.collect() >= 0 and not stats().holders)
    assert watch.closed == ["ormbridge-worker-1"]


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


async def test_stream_that_is_dropped_is_freed(watch):
    """What is dropped, and not closed, is closed, and its cursor and its lease are freed."""
    iterator = aiter(stream(watch.rows(), 2))
    await anext(iterator)
    source = weakref.ref(iterator._source)
    del iterator
    await no_worker_is_leased()
    await until(lambda: gc.collect() >= 0 and source() is None)


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
    (worker,) = default_pool().workers
    del iterator
    end(default_pool())
    assert not worker.is_alive()
    assert watch.closed == ["ormbridge-worker-1"]


def test_process_ends_before_the_stream(watch, pool_settings):
    """At exit the cursor of an open stream is closed on its worker, and nothing hangs."""
    pool_settings(MAX_THREADS=1)

    async def start():
        iterator = aiter(stream(watch.rows(), 2))
        await anext(iterator)
        await until(lambda: len(watch.fetched) == 4)
        await asyncio.to_thread(end, default_pool())
        assert watch.closed == ["ormbridge-worker-1"]
        assert (await anext(iterator)).username == NAMES[1]  # in hand
        names = [(await anext(iterator)).username for _ in range(2)]  # read ahead
        with pytest.raises(PoolClosed, match=r"stream of auth\.User.* came too late"):
            await anext(iterator)
        return names

    assert asyncio.run(start()) == NAMES[2:4]


async def test_block_ends_in_the_moment_that_rows_arrive(watch, gate):
    """Rows that are there as the block ends, and not with who waits for them, are not given."""
    watch.gates[2] = gate
    iterator = aiter(stream(watch.rows(), 2))
    for _ in range(2):
        await anext(iterator)
    # The task that waits asked later, and so is told later.
    iterator._future.add_done_callback(lambda rows: iterator.end_with("the block"))
    waiting = asyncio.create_task(anext(iterator))
    await gate.entered(1)
    gate.open.set()
    with pytest.raises(LeaseClosed, match="opened in the block, which has ended"):
        await waiting
    await iterator.aclose()
    assert watch.closed == ["ormbridge-worker-1"]


async def test_closed_as_its_fetch_is_refused(watch, gate, pool_settings):
    """A stream that is closed while the refusal of its fetch is on its way waits for nothing."""
    pool_settings(MAX_THREADS=1)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    iterator = aiter(stream(watch.rows()))
    waiting = asyncio.create_task(anext(iterator))
    await until(lambda: stats().waiting == 1)
    _expire([iterator._source.call])
    await iterator.aclose()
    with pytest.raises(RuntimeError, match="is closed"):
        await waiting
    gate.open.set()
    await running
