"""Streams under a synchronous frame."""

import asyncio

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import transaction
from django.test import TestCase

from ormbridge import (
    LeaseClosed,
    atomic,
    database_sync_to_async,
    stats,
    stream,
)
from ormbridge.core.asgiref import live_frame
from ormbridge.core.call import hosts
from tests.core.gate import GUARD
from tests.core.support import no_worker_is_leased, until
from tests.support.rows import NAMES, ROWS, Watch, make_users, server_side_cursors

pytestmark = pytest.mark.django_db(transaction=True)


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
        with pytest.raises(LeaseClosed, match="frame has ended; iterate on it to its end there"):
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
        for _ in range(5):
            async for _ in stream(watch.rows(), 3):
                break
            assert [row async for row in stream(watch.rows(), 3)] != []
        frame = live_frame(asyncio.get_running_loop())
        await until(lambda: len(watch.closed) == 10)
        await until(lambda: frame not in hosts)
        return len(frame._work_items)

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
    source = iterator._source
    with pytest.raises(LeaseClosed, match="has ended; iterate on it to its end there"):
        await asyncio.to_thread(source.next_chunk)
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


def test_rows_that_fail_below_a_frame(watch):
    """No cursor stays open on its thread in the traceback of the error."""

    class Unreadable(User):
        class Meta:
            proxy = True
            app_label = "auth"

        @classmethod
        def from_db(cls, *args, **kwargs):
            raise LookupError

    async def read():
        async for _ in stream(Unreadable.objects.all(), 2):
            pass

    with pytest.raises(LookupError) as kept:
        async_to_sync(read)()
    assert server_side_cursors() in (None, 0)
    del kept
