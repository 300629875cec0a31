"""Calls, blocks and other streams in the body of a stream."""

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.db import transaction

from ormbridge import (
    LeaseClosed,
    aclose_old_connections,
    atomic,
    database_sync_to_async,
    pinned,
    stream,
)
from tests.core.gate import GUARD
from tests.core.support import no_worker_is_leased, thread_name
from tests.support.blocks import beside
from tests.support.rows import NAMES, ROWS

pytestmark = pytest.mark.django_db(transaction=True)


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


def begin(rows):
    """Leave a transaction open."""
    transaction.set_autocommit(False)


def suspend(rows):
    """Leave a generator suspended."""
    next(rows)


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


async def test_aclose_old_connections_in_the_body(watch, monkeypatch):
    """In the body, and after it, it still cleans the thread of Django's own a-methods."""
    cleaned = []
    monkeypatch.setattr(
        "ormbridge.core.bridge.close_old_connections_outside_transactions",
        lambda: cleaned.append(thread_name()),
    )
    async for _ in stream(watch.rows(), ROWS):
        await aclose_old_connections()
        break
    await aclose_old_connections()
    assert cleaned == [await sync_to_async(thread_name)()] * 2


async def test_after_the_loop_calls_go_anywhere(watch, gate, pool_settings):
    """Once a stream has ended, calls of its task are on their own again."""
    pool_settings(MAX_THREADS=2)
    async for _ in stream(watch.rows(), 2):
        pass
    calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(2)]
    await gate.entered(2)
    gate.open.set()
    assert len(set(await asyncio.gather(*calls))) == 2


@pytest.mark.parametrize("leave", [begin, suspend])
async def test_after_the_loop_calls_keep_nothing(watch, leave):
    """What a call leaves open after a stream keeps no worker, as it would not without one."""
    async for _ in stream(watch.rows(), 3):
        pass
    await database_sync_to_async(leave)(iter_rows := (row for row in range(3)))
    await no_worker_is_leased()
    del iter_rows


async def test_django_own_calls_in_the_body_of_a_second_stream(watch):
    """They go where they go without a stream, as in the body of the first."""
    names = [await sync_to_async(thread_name)()]
    for _ in range(2):
        names += [await sync_to_async(thread_name)() async for _ in stream(watch.rows(), 3)]
    assert len(names) == 1 + 2 * ROWS
    assert len(set(names)) == 1


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
        match=r"stream of auth\.User was opened in atomic\(\) at test_bodies\.py:\d+ in "
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


async def test_straggler_is_refused_the_rows_of_an_outer_stream(watch):
    """A task that outlives its block gets no more rows, also of a stream from around the block."""
    iterator = aiter(stream(watch.rows(), 2))
    await anext(iterator)
    ended = asyncio.Event()

    async def straggle():
        await ended.wait()
        return [row.username async for row in iterator]

    async with atomic():
        task = asyncio.create_task(straggle())
    ended.set()
    with pytest.raises(LeaseClosed, match=r"was called in atomic\(\) .* outlived the block"):
        await task


async def test_read_ahead_in_line_behind_a_block(watch, pool_settings):
    """A fetch that waits for the block in which its rows are asked for runs in the block."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)
    iterator = aiter(stream(watch.rows(), 2))
    names = [(await anext(iterator)).username]

    async def work(hold):
        async with atomic():
            await hold()
            assert watch.fetched == [0, 1, 2, 3]
            names.extend([(await anext(iterator)).username for _ in range(2)])

    async with beside(work):
        names += [(await anext(iterator)).username for _ in range(2)]
    assert names == NAMES[:5]
    await iterator.aclose()
