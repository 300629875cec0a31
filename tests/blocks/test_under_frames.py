"""Blocks under a synchronous frame: on its thread, with its transaction, to its end."""

# What a block does, and raises, is more than one statement.
# ruff: noqa: PT012

import asyncio
import contextvars
import functools
import gc
import threading
import time
import types
import weakref
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref.sync import AsyncToSync, async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.http import HttpResponse
from django.test import TestCase

from ormbridge import (
    LeaseClosed,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
    stats,
)
from ormbridge.core import route as routes
from ormbridge.core.call import hosts
from ormbridge.leases import frame_lease
from ormbridge.leases.frame_lease import FrameLease
from ormbridge.leases.turns import Line
from tests.core.gate import GUARD
from tests.core.support import run_python, set_timeout, thread_name
from tests.support.blocks import (
    beside,
    create,
    ended,
    first,
    in_atomic_block,
    main_thread,
    turns,
    usernames,
)
from tests.support.http import get

pytestmark = pytest.mark.django_db(transaction=True)


def test_block_under_async_to_sync():
    """Under async_to_sync a block runs on the thread that waits, and takes no worker."""

    async def work():
        async with atomic():
            names = {
                await database_sync_to_async(thread_name)(),
                await sync_to_async(thread_name)(),
            }
            assert await database_sync_to_async(in_atomic_block)()
            await User.objects.acreate(username="ann")
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await User.objects.acreate(username="bob")
                raise ZeroDivisionError
        return names

    assert async_to_sync(work)() == {main_thread()}
    assert sorted(User.objects.values_list("username", flat=True)) == ["ann"]
    assert stats().threads == 0


def test_call_whose_inner_frame_ends_this_moment_stays_in_the_block(monkeypatch):
    """A frame may end between look and submit, on another loop's thread: its call is the block's.

    asgiref would send it to the frame further out, past the block, for whose end it would wait.
    """

    async def work():
        async with atomic():
            await create(username="ann")
            ended_inside = CurrentThreadExecutor(AsyncToSync.executors.current)
            ended_inside._broken = True
            seen = iter([ended_inside])
            real = routes.live_frame
            monkeypatch.setattr(routes, "live_frame", lambda loop: next(seen, real(loop)))
            inside = database_sync_to_async(in_atomic_block)()
            assert await asyncio.wait_for(inside, GUARD)
            assert next(seen, None) is None
            await create(username="bob")

    async_to_sync(work)()
    assert sorted(User.objects.values_list("username", flat=True)) == ["ann", "bob"]


def test_pinned_under_async_to_sync():
    """Under async_to_sync pinned() is the frame's thread, and a straggler of it is refused."""

    async def straggle():
        await over.wait()
        return await User.objects.acount()

    over = asyncio.Event()

    async def work():
        async with pinned():
            names = {
                await database_sync_to_async(thread_name)(),
                await sync_to_async(thread_name)(),
            }
            task = asyncio.create_task(straggle())
        over.set()
        with pytest.raises(LeaseClosed):
            await task
        return names

    assert async_to_sync(work)() == {main_thread()}
    assert stats().threads == 0


def test_blocks_under_a_frame_take_turns(record):
    """Under a frame, gathered blocks run one after the other, in a block and outside of one."""

    @atomic()
    async def work(number):
        await create(username=f"{number} first")
        await turns()
        await User.objects.acreate(username=f"{number} second")
        if number % 2:
            raise LookupError

    async def outside():
        await asyncio.gather(*(work(n) for n in range(2)), return_exceptions=True)

    async def inside():
        async with atomic():
            await asyncio.gather(*(work(n) for n in range(2, 4)), return_exceptions=True)

    async_to_sync(outside)()
    async_to_sync(inside)()
    assert record == [
        *("COMMIT", "ROLLBACK"),
        *("SAVEPOINT", "RELEASE", "SAVEPOINT", "ROLLBACK TO", "RELEASE", "COMMIT"),
    ]
    names = ["0 first", "0 second", "2 first", "2 second"]
    assert sorted(User.objects.values_list("username", flat=True)) == names


def test_neighbour_under_a_frame_waits():
    """A call beside a block under one frame waits for it, the bridge's and Django's own."""

    async def block(hold):
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await hold()
                await User.objects.acreate(username="ann")
                raise ZeroDivisionError

    async def work():
        async with beside(block):
            calls = [
                asyncio.create_task(create(username="bridge")),
                asyncio.create_task(User.objects.acreate(username="native")),
                asyncio.create_task(sync_to_async(in_atomic_block)()),
            ]
            await turns()
            assert not any(each.done() for each in calls)
        assert (await asyncio.gather(*calls))[2] is False

    async_to_sync(work)()
    assert sorted(User.objects.values_list("username", flat=True)) == ["bridge", "native"]


def test_neighbour_under_a_frame_that_waits_too_long():
    """It gets PoolTimeout after TIMEOUT, which names the frame's thread and the block."""

    async def block(hold):
        async with atomic():
            await hold()
            await create(username="ann")

    async def work():
        async with beside(block):
            set_timeout(0.01)
            for call in (create(username="bridge"), User.objects.acreate(username="native")):
                with pytest.raises(
                    PoolTimeout,
                    match=rf"QuerySet\.create waited 0\.\d s for its turn on {main_thread()}, "
                    r"which has a synchronous frame, .*, "
                    r"inside atomic\(\) at test_under_frames\.py:\d+ in test_neighbour_under",
                ):
                    await call
            set_timeout(GUARD)

    async_to_sync(work)()
    assert sorted(User.objects.values_list("username", flat=True)) == ["ann"]


def test_neighbours_under_a_frame_wait_at_one_time():
    """Each waits TIMEOUT seconds from when it came, and not from when the one before gave up."""

    async def block(hold):
        async with atomic():
            await hold()

    async def work():
        async with beside(block):
            set_timeout(0.3)
            began = time.monotonic()
            calls = [User.objects.acount() for _ in range(10)]
            refused = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(each) for each in refused} == {PoolTimeout}
            assert time.monotonic() - began < 10 * 0.3
            set_timeout(GUARD)

    async_to_sync(work)()


def test_neighbour_under_a_frame_is_late_while_the_block_goes_on():
    """What a late neighbour is told needs no lock: who tells it has that of the frame."""
    line = Line()
    line.thread = threading.main_thread()
    with ThreadPoolExecutor(1) as other, line.lock:
        told = other.submit(line.no_turn, "call", 0.0).result(GUARD)
    assert f"for its turn on {main_thread()}" in str(told)


def test_cancelled_neighbour_under_a_frame_never_runs():
    """A call that is cancelled while it waits beside a block of a frame never runs."""

    async def block(hold):
        async with atomic():
            await hold()

    async def work():
        async with beside(block):
            calls = [
                asyncio.create_task(create(username="bridge")),
                asyncio.create_task(User.objects.acreate(username="native")),
                asyncio.create_task(atomic()(turns)()),
            ]
            await turns()
            for each in calls:
                each.cancel()
            await asyncio.wait(calls)
            assert all(each.cancelled() for each in calls)
        assert await User.objects.acount() == 0

    async_to_sync(work)()


def test_cancelled_before_the_frame_comes_to_it(gate):
    """A beginning that is cancelled while the frame's thread is busy leaves nothing behind."""

    async def work():
        busy = asyncio.create_task(database_sync_to_async(gate)())
        await gate.entered()
        block = asyncio.create_task(atomic()(turns)())
        await turns()
        block.cancel()
        await ended(block)
        gate.open.set()
        await busy

    async_to_sync(work)()
    assert not hosts


@pytest.mark.parametrize("moment", ["__enter__", "__exit__"])
def test_cancelled_under_a_frame(gate, moment):
    """Under a frame a cancelled enter is undone, and a cancel during COMMIT lets it stand."""

    async def work():
        async with atomic():
            await create(username="ann")

    async def main():
        with first(transaction.Atomic, moment, gate):
            task = asyncio.create_task(work())
            await gate.entered()
            task.cancel()
            await turns()
            assert not task.done()
            gate.open.set()
            await ended(task)
        assert task.cancelled()
        assert not await database_sync_to_async(in_atomic_block)()

    async_to_sync(main)()
    names = ["ann"] if moment == "__exit__" else []
    assert sorted(User.objects.values_list("username", flat=True)) == names


async def test_straggler_after_the_end_of_the_frame():
    """A task that outlives both block and frame is refused; one of the frame alone goes on."""

    async def straggle():
        await over.wait()
        return await usernames()

    async def inside():
        tasks.append(asyncio.create_task(straggle()))
        async with atomic():
            tasks.append(asyncio.create_task(straggle()))
            tasks.append(asyncio.create_task(over.wait()))
            await create(username="ann")

    over, tasks = asyncio.Event(), []
    await database_sync_to_async(async_to_sync(inside))()
    over.set()
    assert await tasks[0] == ["ann"]
    with pytest.raises(LeaseClosed):
        await tasks[1]


async def test_native_straggler_after_the_end_of_the_frame():
    """An a-method in a task that outlives both block and frame is refused, too."""

    async def straggle():
        await over.wait()
        await User.objects.acreate(username="bob")

    async def inside():
        async with atomic():
            tasks.append(asyncio.create_task(straggle()))
            await create(username="ann")

    over, tasks = asyncio.Event(), []
    await database_sync_to_async(async_to_sync(inside))()
    over.set()
    with pytest.raises(RuntimeError):
        await tasks[0]
    assert await usernames() == ["ann"]


async def in_a_frame_that_ends(block, call):
    """Start a task in *block* under a frame that ends before it; return the task.

    :param call: what the task awaits when the event that is returned, too, is set.
    """

    async def outlive():
        async with block():
            await create(username="ann")
            inside.set()
            await over.wait()
            await call()

    async def frame():
        task = asyncio.create_task(outlive())
        await inside.wait()
        return task

    inside, over = asyncio.Event(), asyncio.Event()
    return await database_sync_to_async(async_to_sync(frame))(), over


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(turns, id="none"),
        pytest.param(lambda: create(username="bob"), id="bridge"),
    ],
)
async def test_frame_that_ends_with_a_block_open(call):
    """A block that outlives its frame is rolled back with it, and its task gets LeaseClosed."""
    task, over = await in_a_frame_that_ends(atomic, call)
    over.set()
    await ended(task)
    assert isinstance(task.exception(), LeaseClosed)
    assert "rolled back: its synchronous frame ended before it" in str(task.exception())
    assert await usernames() == []


async def test_native_call_in_a_block_whose_frame_has_ended():
    """asgiref itself refuses it."""
    task, over = await in_a_frame_that_ends(atomic, lambda: User.objects.acreate(username="bob"))
    over.set()
    await ended(task)
    assert isinstance(task.exception(), RuntimeError)
    assert await usernames() == []


async def test_neighbour_of_a_block_whose_frame_has_ended(visit):
    """In a request, a call beside a block that outlived its frame never lands in it."""

    async def fail():
        raise ZeroDivisionError

    async def work():
        task, over = await in_a_frame_that_ends(atomic, fail)
        neighbour = asyncio.create_task(create(username="neighbour"))
        await turns()
        over.set()
        await ended(task)
        await neighbour

    await visit("http", {}, work)
    assert await usernames() == ["neighbour"]


def test_loop_of_a_frame_that_ends_with_a_block_open():
    """Where async_to_sync runs its own loop, a task left in a block is rolled back by its end."""

    async def outlive():
        async with atomic():
            await create(username="ann")
            inside.set()
            await asyncio.Event().wait()

    async def frame():
        tasks.append(asyncio.create_task(outlive()))
        await inside.wait()

    inside, tasks = asyncio.Event(), []
    async_to_sync(frame)()
    assert tasks[0].cancelled()
    assert not connection.in_atomic_block
    assert User.objects.count() == 0


def test_frame_in_a_frame():
    """Blocks of nested frames on one thread are savepoints of each other."""

    async def inner():
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await User.objects.acreate(username="bob")
                raise ZeroDivisionError
        async with atomic():
            await create(username="cyd")
        return await sync_to_async(thread_name)()

    async def outer():
        async with atomic():
            await create(username="ann")
            return await database_sync_to_async(async_to_sync(inner))()

    assert async_to_sync(outer)() == main_thread()
    assert sorted(User.objects.values_list("username", flat=True)) == ["ann", "cyd"]


def test_context_and_errors_under_a_busy_frame():
    """Calls that go through a frame's line carry context variables, results and errors."""
    variable = contextvars.ContextVar("variable", default=0)

    def change():
        variable.set(variable.get() + 1)
        return variable.get()

    def stop():
        raise StopIteration

    async def work():
        async with atomic():
            found = [await database_sync_to_async(change)(), await sync_to_async(change)()]
            with pytest.raises(ZeroDivisionError):
                await sync_to_async(lambda: 1 / 0)()
            with pytest.raises(ZeroDivisionError):
                await database_sync_to_async(lambda: 1 / 0)()
            with pytest.raises(RuntimeError):
                await database_sync_to_async(stop)()
            return [*found, variable.get()]

    assert async_to_sync(work)() == [1, 2, 2]


def test_thread_sensitive_false_under_a_frame():
    """``thread_sensitive=False`` in a block of a frame leaves it for a worker."""

    async def work():
        async with atomic():
            call = database_sync_to_async(
                lambda: (thread_name(), connection.in_atomic_block), thread_sensitive=False
            )
            return await call()

    assert async_to_sync(work)() == ("ormbridge-worker-1", False)


async def test_sync_view_in_a_request(serve):
    """A sync view that uses async_to_sync has its blocks on its own worker."""

    async def work():
        async with atomic():
            name = await sync_to_async(thread_name)()
            await User.objects.acreate(username="ann")
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await create(username="bob")
                raise ZeroDivisionError
        return name

    def view(request):
        return HttpResponse(f"{thread_name()} {async_to_sync(work)()}")

    assert await get(serve(view)) == "200 ormbridge-worker-1 ormbridge-worker-1"
    assert await usernames() == ["ann"]


async def test_sync_view_with_one_worker(serve, pool_settings):
    """Sync views with blocks, more of them than workers, all end."""
    pool_settings(MAX_THREADS=1)

    @atomic()
    async def work(path):
        await User.objects.acreate(username=path)
        await asyncio.gather(create(username=f"{path} 1"), create(username=f"{path} 2"))

    def view(request):
        async_to_sync(work)(f"{len(paths)}")
        return HttpResponse()

    class Paths(list):
        def __len__(self):
            self.append(None)
            return super().__len__()

    paths = Paths()
    application = serve(view)
    await asyncio.gather(*(get(application) for _ in range(3)))
    assert len(await usernames()) == 9


class InDjangosTestCase(TestCase):
    """Under Django's TestCase blocks are savepoints of the test's transaction."""

    async def test_block(self):
        """A block sees what the test wrote, and nests in its transaction."""
        await User.objects.acreate(username="ann")
        async with atomic():
            assert await sync_to_async(thread_name)() == main_thread()
            assert await usernames() == ["ann"]
            await create(username="bob")
        with pytest.raises(ZeroDivisionError):
            async with atomic():
                await create(username="cyd")
                raise ZeroDivisionError
        assert await usernames() == ["ann", "bob"]
        assert stats().threads == 0

    async def test_durable(self):
        """TestCase lets durable blocks be: as in Django, its own block does not count."""
        async with atomic(durable=True):
            await create(username="ann")

    async def test_gather(self):
        """Gathered blocks take turns."""

        @atomic()
        async def work(number):
            await create(username=f"{number}")
            await turns()
            if number == 1:
                raise LookupError

        await asyncio.gather(*(work(n) for n in range(3)), return_exceptions=True)
        assert await usernames() == ["0", "2"]

    def test_callbacks_can_be_captured(self):
        """captureOnCommitCallbacks() finds plain and async callbacks, and runs them."""
        ran = []

        async def asynchronous():
            ran.append(await sync_to_async(thread_name)())

        @atomic()
        async def work():
            await sync_to_async(transaction.on_commit)(functools.partial(ran.append, "plain"))
            await sync_to_async(transaction.on_commit)(asynchronous)

        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            async_to_sync(work)()
            assert ran == []
        assert len(callbacks) == 2
        assert ran == ["plain", main_thread()]


def test_calls_of_a_block_that_outlives_its_frame():
    """Each of them is refused at once: none waits for a thread that will not come."""

    async def outlive():
        async with pinned():
            await ended.wait()
            for _ in range(2):
                with pytest.raises(LeaseClosed, match="its synchronous frame has ended"):
                    await create(username="late")

    async def below():
        tasks.append(asyncio.ensure_future(outlive()))
        await turns()

    async def main():
        await sync_to_async(async_to_sync(below))()
        ended.set()
        await asyncio.wait_for(tasks[0], GUARD / 4)

    tasks, ended = [], asyncio.Event()
    asyncio.run(main())
    assert User.objects.count() == 0


async def stay_inside(inside):
    """Stay in a block, and say in *inside* that it is open."""
    async with atomic():
        await create(username="ann")
        inside.append(True)
        await asyncio.Event().wait()


@types.coroutine
def until_inside(coroutine, inside):
    """Run *coroutine*, in no task of its own, until it is in its block."""
    for step in coroutine.__await__():
        if inside:
            return
        yield step


def test_block_whose_coroutine_is_freed_under_a_frame():
    """Its end goes to the frame a moment later: the thread that frees it may have the frame's lock.

    What comes after it finds the block rolled back.
    """

    async def main():
        inside = []
        coroutines = [stay_inside(inside)]
        await until_inside(coroutines[0], inside)
        with mock.patch.object(FrameLease, "_rouse") as rouse:
            coroutines.clear()
        assert not rouse.called
        return await User.objects.acount(), await database_sync_to_async(in_atomic_block)()

    assert async_to_sync(main)() == (0, False)
    assert not connection.in_atomic_block


def test_block_whose_coroutine_is_closed_after_its_frame():
    """Its loop is closed, and it was rolled back as its frame ended: nothing is left to do."""
    inside = []
    coroutine = stay_inside(inside)

    async def enter():
        await until_inside(coroutine, inside)

    async def main():
        await asyncio.create_task(enter())  # what it entered does not go on behind the frame

    async_to_sync(main)()
    assert not connection.in_atomic_block
    coroutine.close()
    assert User.objects.count() == 0


def test_frame_is_told_of_its_guest_before_that_comes(monkeypatch):
    """Who gets in line behind the guest knows of it, and so waits no longer than TIMEOUT."""
    told, submit = [], frame_lease.submit

    def watched(frame, host):
        told.append(hosts.get(frame) is host.__self__)
        return submit(frame, host)

    monkeypatch.setattr(frame_lease, "submit", watched)

    async def work():
        async with atomic():
            await create(username="ann")

    async_to_sync(work)()
    assert told == [True]


def test_forked_child_has_a_lock_of_its_own():
    """What another thread of the parent was about to do below a frame holds up no child."""
    result = run_python(
        """
        import os, threading
        from ormbridge.core import process

        held, done = threading.Event(), threading.Event()

        def hold():
            with process.lock:
                held.set()
                done.wait()

        threading.Thread(target=hold).start()
        held.wait()
        child = os.fork()
        if not child:
            os._exit(not process.lock.acquire(blocking=False))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        done.set()
        """
    )
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr


@pytest.mark.parametrize("block", [atomic, pinned])
@pytest.mark.parametrize("left", [True, False])
def test_task_that_outlives_its_frame_below_another(block, left):
    """A block whose frame has ended takes no calls, also where a frame further out is live."""

    async def task(inside, go):
        async with block():
            await create(username="ann")
            if not left:
                inside.set()
                await go.wait()
                await User.objects.acreate(username="bob")
            later = contextvars.copy_context()
        inside.set()
        await go.wait()
        await asyncio.create_task(User.objects.acreate(username="bob"), context=later)

    async def inner(events, tasks):
        tasks.append(asyncio.create_task(task(*events)))
        await events[0].wait()

    async def outer():
        events, tasks = (asyncio.Event(), asyncio.Event()), []
        await sync_to_async(async_to_sync(inner))(events, tasks)
        events[1].set()
        with pytest.raises(LeaseClosed):
            await tasks[0]

    async_to_sync(outer)()
    assert async_to_sync(usernames)() == (["ann"] if left or block is pinned else [])


def test_witness_of_a_frame_is_freed():
    """What watches over a block on a frame's thread goes as it ends, without a collector."""

    @async_to_sync
    async def work():
        async with atomic():
            witness = await database_sync_to_async(lambda: connection.ormbridge_witness)()
            return weakref.ref(witness)

    gc.disable()
    try:
        assert work()() is None
    finally:
        gc.enable()
    assert not hasattr(connection, "ormbridge_witness")
