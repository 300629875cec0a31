"""The innermost wins: under a live synchronous frame, calls run on that frame's thread."""

import asyncio
import contextvars
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from unittest import mock

import pytest
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import AsyncToSync, ThreadSensitiveContext, async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.test import TestCase

from ormbridge.core import asgiref as frames
from ormbridge.core import route as routes
from ormbridge.core.bridge import database_sync_to_async
from ormbridge.core.errors import PoolTimeout
from ormbridge.core.process import stats
from tests.core.gate import GUARD
from tests.core.support import thread_name

WORKER = "ormbridge-worker-"


async def bridged_thread_name():
    return await database_sync_to_async(thread_name)()


async def ended_frame():
    """Return the executor of a frame that has ended."""

    async def inside():
        return AsyncToSync.executors.current

    return await database_sync_to_async(async_to_sync(inside))()


def test_the_quick_look_for_a_frame_is_in_use():
    """The context variable that spares a slow look-up is there in this asgiref, and agrees."""
    seen = []

    async def look():
        seen.append(frames._variable.get(None).data["current"])
        seen.append(AsyncToSync.executors.current)

    assert contextvars.Context().run(frames._variable.get, None) is None
    async_to_sync(look)()
    assert isinstance(seen[0], CurrentThreadExecutor)
    assert seen[0] is seen[1]


def test_frame_is_found_without_the_quick_look(monkeypatch):
    """Where asgiref keeps its variable elsewhere, the frame is found all the same."""
    monkeypatch.setattr(frames, "_variable", None)
    assert async_to_sync(bridged_thread_name)() == thread_name()


def test_call_runs_on_the_thread_of_async_to_sync():
    """Under async_to_sync a call runs on the thread that waits, and takes no worker."""
    assert async_to_sync(bridged_thread_name)() == thread_name()
    assert stats().threads == 0


async def test_call_below_a_sync_view_runs_on_its_thread():
    """A call below async_to_sync in a bridged function runs on that function's thread."""

    def view():
        return thread_name(), async_to_sync(bridged_thread_name)()

    above, below = await database_sync_to_async(view)()
    assert above == below
    assert above.startswith(WORKER)


async def test_one_worker_is_enough_for_any_nesting(pool_settings):
    """Bridge, async_to_sync, bridge, async_to_sync … never waits for a second worker."""
    pool_settings(MAX_THREADS=1)

    def nest(depth):
        return async_to_sync(anest)(depth - 1) if depth else thread_name()

    async def anest(depth):
        return await database_sync_to_async(nest)(depth)

    assert await asyncio.wait_for(anest(5), GUARD) == "ormbridge-worker-1"


async def test_task_that_outlives_its_frame_goes_to_the_pool():
    """A task started under async_to_sync that outlives it has its calls run on the pool."""
    left = asyncio.Event()

    async def outlive():
        await left.wait()
        return await bridged_thread_name()

    def view():
        async def start():
            return asyncio.create_task(outlive())

        return async_to_sync(start)()

    task = await database_sync_to_async(view)()
    left.set()
    assert (await asyncio.wait_for(task, GUARD)).startswith(WORKER)


async def test_dead_frame_gives_way_to_a_live_one_around_it():
    """Of nested frames the innermost live one counts, when the one inside it is dead."""
    left = asyncio.Event()

    async def outlive_inner():
        await left.wait()
        return await bridged_thread_name()

    def outer():
        async def in_outer():
            def inner():
                async def in_inner():
                    return asyncio.create_task(outlive_inner())

                return async_to_sync(in_inner)()

            task = await database_sync_to_async(inner)()
            left.set()
            return await task

        return thread_name(), async_to_sync(in_outer)()

    above, below = await database_sync_to_async(outer)()
    assert above == below


def test_frame_wins_over_a_thread_sensitive_context():
    """Under async_to_sync a ThreadSensitiveContext does not move a call off the frame's thread."""

    async def inside():
        async with ThreadSensitiveContext():
            return await bridged_thread_name()

    assert async_to_sync(inside)() == thread_name()


async def test_frame_is_found_behind_a_context_with_an_executor(pool_settings):
    """ThreadSensitiveContext(executor=…) under a worker's frame asks for no second worker."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.01)  # not waited for

    async def inside():
        with ThreadPoolExecutor(1, thread_name_prefix="theirs") as executor:
            async with ThreadSensitiveContext(executor=executor):
                return await sync_to_async(thread_name)(), await bridged_thread_name()

    theirs, below = await asyncio.wait_for(database_sync_to_async(async_to_sync(inside))(), GUARD)
    assert theirs.startswith("theirs")
    assert below == "ormbridge-worker-1"


def test_task_without_context_finds_the_frame_of_its_loop():
    """A task that lost its context still runs on the thread whose async_to_sync runs the loop."""

    async def inside():
        task = asyncio.get_running_loop().create_task(
            bridged_thread_name(), context=contextvars.Context()
        )
        return await task

    assert async_to_sync(inside)() == thread_name()


async def test_frame_on_the_loops_own_thread_is_no_frame():
    """A loop that runs on the frame's own thread cannot be served by it: the pool serves it."""

    def run_a_loop():
        return asyncio.run(bridged_thread_name())

    def view():
        async def inside():
            return await database_sync_to_async(run_a_loop)()

        return thread_name(), async_to_sync(inside)()

    above, below = await database_sync_to_async(view)()
    assert below.startswith(WORKER)
    assert below != above


async def test_frame_that_ends_this_moment_gives_way_to_the_pool(monkeypatch):
    """If a frame ends between look and submit, on another loop's thread, the pool has the call."""
    frame = await ended_frame()
    seen = iter([frame, None])
    monkeypatch.setattr(routes, "live_frame", lambda loop: next(seen))
    assert (await bridged_thread_name()).startswith(WORKER)


async def test_loop_on_a_worker_never_waits_for_a_second_worker(pool_settings):
    """asyncio.run inside a bridged function fails at once where it would wait for a worker."""
    pool_settings(MAX_THREADS=1)

    def run_a_loop():
        return asyncio.run(bridged_thread_name())

    with pytest.raises(PoolTimeout, match=r"Use async_to_sync in place of asyncio\.run"):
        await asyncio.wait_for(database_sync_to_async(run_a_loop)(), GUARD)


async def test_thread_sensitive_false_leaves_the_frame_for_a_free_worker():
    """thread_sensitive=False under a frame takes another worker where one is free."""

    def view():
        call = database_sync_to_async(thread_name, thread_sensitive=False)
        return thread_name(), async_to_sync(call)()

    above, below = await database_sync_to_async(view)()
    assert below.startswith(WORKER)
    assert above != below


async def test_thread_sensitive_false_runs_on_the_frame_where_no_worker_is_free(pool_settings):
    """thread_sensitive=False under a worker's frame runs there rather than wait for another."""
    pool_settings(MAX_THREADS=1)

    def view():
        call = database_sync_to_async(thread_name, thread_sensitive=False)
        return thread_name(), async_to_sync(call)()

    above, below = await asyncio.wait_for(database_sync_to_async(view)(), GUARD)
    assert above == below


@pytest.mark.django_db(transaction=True)
async def test_thread_sensitive_false_does_not_join_a_transaction(pool_settings):
    """thread_sensitive=False inside a transaction, with no worker free, raises at once."""
    pool_settings(MAX_THREADS=1)

    def view():
        with transaction.atomic():
            User.objects.count()
            return async_to_sync(database_sync_to_async(thread_name, thread_sensitive=False))()

    with pytest.raises(PoolTimeout, match="Leave thread_sensitive out to join the transaction"):
        await asyncio.wait_for(database_sync_to_async(view)(), GUARD)


def test_thread_sensitive_false_under_a_plain_frame(gate, pool_settings):
    """Under the frame of a thread that is no worker it is the same: a free worker, or the frame."""
    pool_settings(MAX_THREADS=1)

    async def inside():
        busy = asyncio.create_task(database_sync_to_async(gate, thread_sensitive=False)())
        await gate.entered()
        here = await database_sync_to_async(thread_name, thread_sensitive=False)()
        gate.open.set()
        return await busy, here

    assert async_to_sync(inside)() == ("ormbridge-worker-1", threading.current_thread().name)


@pytest.mark.django_db(transaction=True)
def test_thread_sensitive_false_does_not_join_a_transaction_of_a_plain_frame(gate, pool_settings):
    """Nor does it join the transaction of such a thread where no worker is free."""
    pool_settings(MAX_THREADS=1)

    async def inside():
        busy = asyncio.create_task(database_sync_to_async(gate, thread_sensitive=False)())
        await gate.entered()
        try:
            await database_sync_to_async(thread_name, thread_sensitive=False)()
        finally:
            gate.open.set()
            await busy

    with transaction.atomic():
        User.objects.count()
        with pytest.raises(PoolTimeout, match="in a transaction on MainThread"):
            async_to_sync(inside)()


async def test_cancelled_call_on_a_frame_never_starts():
    """A call in line for a frame's thread that is cancelled before its turn never runs."""
    ran = []
    inside, go_on = threading.Event(), threading.Event()

    def busy():
        inside.set()
        assert go_on.wait(GUARD)

    def view():
        async def two_calls():
            first = asyncio.create_task(database_sync_to_async(busy)())
            await asyncio.to_thread(inside.wait, GUARD)
            second = asyncio.create_task(database_sync_to_async(ran.append)("second"))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.wait([second])
            go_on.set()
            await first
            return second.cancelled()

        return async_to_sync(two_calls)()

    assert await database_sync_to_async(view)()
    assert ran == []


@pytest.mark.django_db(transaction=True)
def test_frame_keeps_its_connection(connection_settings):
    """With CONN_MAX_AGE = 0 a call under a frame does not close the frame's connection."""
    connection.close()
    connection_settings(CONN_MAX_AGE=0)
    connection.ensure_connection()
    before = connection.connection
    async_to_sync(database_sync_to_async(User.objects.count))()
    assert connection.connection is before
    connection.close()


@pytest.mark.django_db(transaction=True)
def test_frame_replaces_a_dead_connection():
    """A call under a frame gets a new connection where the frame's own one has died."""
    connection.ensure_connection()
    before = connection.connection
    connection.errors_occurred = True
    with mock.patch.object(type(connections["default"]), "is_usable", return_value=False):
        assert async_to_sync(database_sync_to_async(User.objects.count))() == 0
    assert connection.connection is not before


@pytest.mark.django_db(transaction=True)
def test_refresh_that_fails_does_not_lose_the_call():
    """A connection of the frame that cannot be looked at does not cost a call that needs none."""
    connection.ensure_connection()

    async def inside():
        return await asyncio.wait_for(bridged_thread_name(), GUARD)

    with mock.patch(
        "ormbridge.core.connections.transaction_open", side_effect=LookupError("stuck")
    ):
        assert async_to_sync(inside)() == thread_name()


def test_interrupted_refresh_reaches_the_caller():
    """What interrupts the thread of a frame before the function starts is raised to the caller."""

    class Interrupt(BaseException):
        pass

    async def inside():
        await asyncio.wait_for(database_sync_to_async(len)(""), GUARD)

    with (
        mock.patch("ormbridge.core.call.refresh_own_thread", side_effect=Interrupt),
        pytest.raises(Interrupt),
    ):
        async_to_sync(inside)()


class InDjangosTestCase(TestCase):
    """Django's TestCase needs no helper."""

    @classmethod
    def setUpTestData(cls):
        User.objects.create(username="made in setUpTestData")

    async def test_sees_the_transaction_of_the_test(self):
        """In an async test of Django's TestCase a call sees the test's uncommitted rows."""
        await User.objects.acreate(username="made in the test")
        names = await database_sync_to_async(
            lambda: sorted(User.objects.values_list("username", flat=True))
        )()
        self.assertEqual(names, ["made in setUpTestData", "made in the test"])

    async def test_rolls_back_what_a_call_did(self):
        """What a call does in an async test of Django's TestCase is rolled back (run one)."""
        self.assertEqual(await database_sync_to_async(User.objects.count)(), 1)
        await database_sync_to_async(User.objects.create)(username="made by a call")

    async def test_rolls_back_what_a_call_did_again(self):
        """What a call does in an async test of Django's TestCase is rolled back (run two)."""
        self.assertEqual(await database_sync_to_async(User.objects.count)(), 1)
        await database_sync_to_async(User.objects.create)(username="made by a call")


def test_a_future_is_what_asgiref_hands_out():
    """asgiref's executor still has the fields that the look for a frame reads."""
    executor = CurrentThreadExecutor(None)
    assert executor._broken is False
    assert executor._old_executor is None
    assert executor._work_thread is threading.current_thread()
    done: Future[None] = Future()
    done.set_result(None)
    executor.run_until_future(done)
    assert executor._broken is True
