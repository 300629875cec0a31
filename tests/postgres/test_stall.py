"""A network that stalls: whoever gives up comes back, and the worker too."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import warnings

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.db import connection, connections, transaction
from django.http import HttpResponse
from django.urls import path

from ormbridge import (
    BridgeMiddleware,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
    stats,
    stream,
)
from ormbridge.core import hooks
from ormbridge.core.call import Call
from ormbridge.core.connections import ThreadConnections
from ormbridge.core.mailbox import mailbox_of
from ormbridge.core.process import default_pool, end
from ormbridge.postgres import canceller
from ormbridge.postgres import connections as stopped
from ormbridge.streaming.source import Source
from tests.core.gate import GUARD, apart
from tests.core.support import ROOT, until
from tests.settings import CHOICE
from tests.support.blocks import beside, ended, first
from tests.support.canceller import Outside, cancelled, cancellers, in_context, pid
from tests.support.http import request

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


postgresql = pytest.mark.skipif(CHOICE != "postgresql", reason="only PostgreSQL is given up")


@pytest.fixture
def outside(network, monkeypatch):
    """Hold the tables of users and groups; what waits for them is given up after a moment."""
    server = connections.settings["default"]
    with monkeypatch.context() as direct:
        direct.setitem(server, "PORT", str(network._server[1]))
        outside = Outside()
    yield outside
    outside.close()


@pytest.fixture
def soon(monkeypatch):
    """Give up after a moment."""
    monkeypatch.setattr(ThreadConnections, "BOUND", 0.2)


@pytest.fixture(autouse=True)
def cancellers_end():
    """See that no thread that stops a call outlives it."""
    yield
    for thread in cancellers():
        thread.join(GUARD)
        assert not thread.is_alive()


count = database_sync_to_async(User.objects.count)


async def worker_is_back(discarded=1):
    """Wait until the worker is free, though nobody waits for it and the network still stalls."""
    await until(lambda: stats().idle == stats().threads)
    assert stats().discarded == discarded


async def goes_on(network, outside):
    """See that all is well when the network is."""
    outside.let_go()
    network.go_on()
    assert await asyncio.wait_for(count(), GUARD) == 0


STALLS = {"everything": True, "what is open": False}


# Calls


@postgresql
@pytest.mark.parametrize("new_ones", STALLS.values(), ids=STALLS)
async def test_call(network, outside, soon, new_ones):
    """A call that is cancelled gives its worker back, whether the request for it arrives or not."""
    await database_sync_to_async(pid)()
    call = asyncio.create_task(count())
    await outside.sees(1)
    network.stall(new_ones)
    await cancelled(call)
    await worker_is_back()
    await goes_on(network, outside)


@postgresql
async def test_bound(network, outside):
    """Nobody has to set anything: a worker is given up after some seconds."""
    assert ThreadConnections.BOUND < 5
    await database_sync_to_async(pid)()
    call = asyncio.create_task(count())
    await outside.sees(1)
    network.stall()
    await cancelled(call)
    await worker_is_back()


@postgresql
async def test_call_that_nobody_gave_up_is_not_cut(network, outside, soon, pool_settings):
    """A slow statement that is awaited goes on, whoever waits for its worker in vain."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.1)
    call = asyncio.create_task(count())
    await outside.sees(1)
    for _ in range(3):
        with pytest.raises(PoolTimeout):
            await count()
    outside.let_go()
    assert await call == 0
    assert stats().discarded == 0


@postgresql
async def test_connection_of_psycopgs_pool(network, outside, soon):
    """A connection that was given up is not handed on by psycopg's pool: it gets another."""
    with pytest.MonkeyPatch.context() as patch:
        settings = connections.settings["default"]
        patch.setitem(settings, "CONN_MAX_AGE", 0)
        patch.setitem(settings, "OPTIONS", {"pool": {"min_size": 1, "max_size": 1}})
        before = await database_sync_to_async(pid)()
        call = asyncio.create_task(count())
        await outside.sees(1)
        network.stall()
        await cancelled(call)
        await worker_is_back()
        network.go_on()
        outside.let_go()
        assert await asyncio.wait_for(database_sync_to_async(pid)(), GUARD) != before
        await database_sync_to_async(lambda: connections["default"].close_pool())()


@postgresql
async def test_block_below_a_frame_on_a_worker_runs_to_its_end(soon):
    """What runs below a synchronous frame is nobody's to break, on a worker as on any thread."""

    def sleep_a_second():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(1)")

    async def below():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05), atomic():
                await database_sync_to_async(sleep_a_second)()

    def view():
        with transaction.atomic():
            before = pid()
            async_to_sync(below)()
            return before == pid()

    assert await database_sync_to_async(view)()


@postgresql
async def test_connecting(network, soon, connection_settings):
    """A worker that is making a connection is back when ``connect_timeout`` is over."""
    connection_settings(OPTIONS={"connect_timeout": 2})
    network.stall()
    await cancelled_soon(count())
    await worker_is_back(discarded=0)


@postgresql
async def test_server_that_does_not_close_its_end(network, monkeypatch):
    """A worker waits for a closed connection to be gone, but not longer than a moment."""
    monkeypatch.setattr(stopped, "_PATIENCE", 0.01)

    def close():
        connection.ensure_connection()
        network.stall()
        connection.close()
        return connection.connection

    assert await database_sync_to_async(close)() is None
    network.go_on()
    assert await count() == 0


async def cancelled_soon(awaitable):
    """Await *awaitable* until a worker is at it; then cancel it, and wait until it has ended."""
    task = asyncio.ensure_future(awaitable)
    await until(lambda: stats().holders)
    task.cancel()
    await ended(task)
    assert task.cancelled()


@postgresql
async def test_without_a_thread(network, outside, soon, monkeypatch, caplog):
    """Where no thread can be started to stop a call, that is logged, and its worker comes back."""
    await database_sync_to_async(pid)()
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "ormbridge-canceller":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    call = asyncio.create_task(count())
    await outside.sees(1)
    await cancelled(call)
    await worker_is_back()
    refused, discarded = caplog.messages
    assert refused.endswith(
        'was cancelled, and its statement runs on: RuntimeError("can\'t start new thread")'
    )
    assert discarded == "connection 'default' discarded: its server gave no answer in time"
    await goes_on(network, outside)


async def test_call_that_was_refused_needs_no_stopping():
    """A call that is cancelled when it was refused, and before it is told so, leaves no thread."""
    call = Call(len, len, mailbox_of(asyncio.get_running_loop()))
    call.awaits = []
    call.refuse(PoolTimeout("no worker"))
    assert not call.cancel()
    hooks.stop(call)
    await until(lambda: cancellers() == [])


# The worker's own statements


stalls = None


def reset(connection):
    """Clear the session, as RESET does."""
    if stalls is not None:
        stalls()
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


@pytest.fixture
def stalled_reset(network, pool_settings, monkeypatch, soon):
    """Have the network stall as RESET is called; return what is set by then."""
    pool_settings(MAX_THREADS=1, RESET=f"{__name__}.reset")
    stalled = threading.Event()

    def stall():
        network.stall()
        stalled.set()

    monkeypatch.setattr(sys.modules[__name__], "stalls", stall)
    return stalled


@postgresql
async def test_reset_after_a_call(network, stalled_reset):
    """A call that is cancelled while RESET runs after it gives its worker back."""
    call = asyncio.create_task(database_sync_to_async(pid)())
    assert await asyncio.to_thread(stalled_reset.wait, GUARD)
    await cancelled(call)
    await worker_is_back()


@postgresql
async def test_reset_that_nobody_awaits(network, stalled_reset, pool_settings):
    """A worker that waits in RESET, with nobody to cancel it, is freed by who needs it."""
    pool_settings(MAX_THREADS=1, TIMEOUT=2 * ThreadConnections.BOUND, RESET=f"{__name__}.reset")
    async with in_context(holds=True):
        await database_sync_to_async(pid)()
    assert await asyncio.to_thread(stalled_reset.wait, GUARD)
    with pytest.raises(PoolTimeout):
        await database_sync_to_async(len)("abc")
    await worker_is_back()


@postgresql
async def test_reset_that_has_just_begun(network, stalled_reset, pool_settings, monkeypatch):
    """Who waits in vain, for as short as may be, breaks no connection in a RESET that goes on."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.1, RESET=f"{__name__}.reset")
    monkeypatch.setattr(ThreadConnections, "BOUND", GUARD)
    async with in_context(holds=True):
        await database_sync_to_async(pid)()
    assert await asyncio.to_thread(stalled_reset.wait, GUARD)
    with pytest.raises(PoolTimeout):
        await database_sync_to_async(len)("abc")
    network.go_on()
    await worker_is_back(discarded=0)


@postgresql
async def test_question_after_a_request(network, outside, soon, monkeypatch):
    """A network that stalls when a statement was just stopped keeps no worker either."""
    await database_sync_to_async(pid)()
    asked = stopped._reason_to_distrust

    def stall_and_ask(raw):
        network.stall()
        return asked(raw)

    monkeypatch.setattr(stopped, "_reason_to_distrust", stall_and_ask)
    call = asyncio.create_task(count())
    await outside.sees(1)
    await cancelled(call)
    await worker_is_back()


# Blocks


def one(connection=connection):
    """Make a statement: only then a transaction has begun on the server."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


async def in_pinned(body):
    async with pinned():
        await body()


async def in_atomic(body):
    async with atomic():
        await body()


async def in_socket(body):
    async with in_context():
        await body()


async def in_nested_atomic(body):
    async with atomic():
        async with atomic():
            async with atomic():
                await body()


async def in_two_databases(body):
    async with atomic("other"):
        await database_sync_to_async(lambda: one(connections["other"]))()
        async with atomic():
            await body()


BLOCKS = [in_pinned, in_atomic, in_nested_atomic, in_two_databases]


@postgresql
@pytest.mark.parametrize("new_ones", STALLS.values(), ids=STALLS)
@pytest.mark.parametrize("block", BLOCKS)
async def test_call_in_a_block(network, outside, soon, block, new_ones):
    """A block that is cancelled during a call is left, and its worker comes back."""
    task = asyncio.create_task(block(count))
    await outside.sees(1)
    network.stall(new_ones)
    await cancelled(task)
    await until(lambda: stats().idle == stats().threads)
    await goes_on(network, outside)


@postgresql
@pytest.mark.parametrize("block", BLOCKS)
async def test_block_that_waits_for_something_else(network, outside, soon, block):
    """A block that is cancelled while nothing runs is left: its rollback is given up."""

    async def body(hold):
        await database_sync_to_async(one)()
        network.stall()
        await hold()

    async with beside(lambda hold: block(lambda: body(hold))) as task:
        await cancelled(task)
    await until(lambda: stats().idle == stats().threads)
    await goes_on(network, outside)


@postgresql
@pytest.mark.parametrize("block", [in_atomic, in_nested_atomic])
async def test_timeout_in_a_block(network, outside, soon, block):
    """A block that is left by a timeout inside it does not wait for what runs there to its end."""

    async def body():
        await database_sync_to_async(one)()
        call = asyncio.create_task(sync_to_async(User.objects.count)())
        await outside.sees(1)
        network.stall()
        async with asyncio.timeout(0):
            await call

    task = asyncio.create_task(block(body))
    await ended(task)
    assert isinstance(task.exception(), TimeoutError)
    await until(lambda: stats().idle == stats().threads)
    await goes_on(network, outside)


@postgresql
@pytest.mark.parametrize("block", [in_atomic, in_nested_atomic])
async def test_commit(network, outside, soon, block):
    """A block that is cancelled as it ends is left, though nobody knows what became of it."""

    async def body():
        await database_sync_to_async(one)()
        network.stall()

    task = asyncio.create_task(block(body))
    await until(lambda: stats().holders and "the end of" in stats().holders[0][1])
    await cancelled(task)
    await until(lambda: stats().idle == stats().threads)
    await goes_on(network, outside)


@postgresql
async def test_failed_block_waits_for_what_runs_in_it(network, outside, soon):
    """A block that fails does not break what still runs there, if nobody gave that up."""

    async def body():
        nonlocal call
        call = asyncio.create_task(count())
        await outside.sees(1)
        raise ValueError("the block fails")

    call = None
    looked = threading.Semaphore(0)
    with first(canceller, "glance", looked.release):
        task = asyncio.create_task(in_atomic(body))
        for _ in range(3):
            assert await asyncio.to_thread(looked.acquire, timeout=GUARD)
    outside.let_go()
    await ended(task)
    assert isinstance(task.exception(), ValueError)
    assert await call == 0
    assert stats().discarded == 0


@postgresql
async def test_beginning_of_a_block(network, outside, soon):
    """Entering an inner block can be given up, and the outer one with it."""
    outer = asyncio.Event()

    async def body():
        await database_sync_to_async(one)()
        network.stall()
        outer.set()
        async with atomic():
            raise AssertionError("the savepoint was never made")

    task = asyncio.create_task(in_atomic(body))
    await asyncio.wait_for(outer.wait(), GUARD)
    await until(lambda: stats().holders and "the beginning of" in stats().holders[0][1])
    await cancelled(task)
    await until(lambda: stats().idle == stats().threads)
    await goes_on(network, outside)


@postgresql
async def test_block_on_a_connection_that_is_being_made(network, soon, connection_settings):
    """Entering a block can be given up though the worker is not back before it is connected."""
    connection_settings(OPTIONS={"connect_timeout": 60})
    network.stall()
    task = asyncio.create_task(in_atomic(count))
    await until(lambda: stats().holders)
    await cancelled(task)
    assert stats().idle == 0
    network.go_on()
    await worker_is_back(discarded=0)
    assert await count() == 0


# Streams


@pytest.fixture
def users(transactional_db):
    """Make three users."""
    User.objects.bulk_create(User(username=f"user {number}") for number in range(3))


@pytest.fixture
def rows(users, network):
    """Return a function that streams three users, one at a time."""
    return lambda: stream(User.objects.order_by("username"), 1)


@pytest.fixture
def cursors_are_lost():
    """Ignore that psycopg warns of cursors that could not be closed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@contextlib.contextmanager
def at_second_fetch(action):
    """Have *action* called on the worker before the second chunk is fetched."""
    fetches = iter(range(100))
    with first(Source, "next_chunk", lambda: action() if next(fetches) == 1 else None):
        yield


@postgresql
@pytest.mark.parametrize("way", ["break", "aclose", "cancel"])
async def test_stream_whose_rows_are_read_ahead(network, rows, soon, cursors_are_lost, way):
    """A stream is left while the next rows do not come, and its worker is free."""
    stalled = threading.Event()

    def stall():
        network.stall()
        stalled.set()

    async def body():
        async with contextlib.AsyncExitStack() as stack:
            each = rows()
            if way == "aclose":
                each = await stack.enter_async_context(each)
            async for _ in each:
                assert await asyncio.to_thread(stalled.wait, GUARD)
                if way != "cancel":
                    break
                reached.set()

    reached = asyncio.Event()
    with at_second_fetch(stall):
        task = asyncio.create_task(body())
        if way == "cancel":
            await asyncio.wait_for(reached.wait(), GUARD)
            task.cancel()
        await ended(task)
    await until(lambda: stats().idle == stats().threads)
    network.go_on()
    assert await count() == 3


@postgresql
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("rows_of", [stream, lambda rows, size: rows.aiterator(size)])
@pytest.mark.parametrize("block", [in_socket, in_atomic])
async def test_closing_of_a_cursor(users, network, soon, cursors_are_lost, block, rows_of):
    """A loop is left though its cursor cannot be closed, and the worker is free."""

    async def body():
        each = aiter(rows_of(User.objects.order_by("username"), 1))
        await anext(each)
        await anext(each)
        await database_sync_to_async(one)()  # what was read ahead is there
        network.stall()
        del each
        raise ValueError("after the loop")

    task = asyncio.create_task(block(body))
    await ended(task)
    assert isinstance(task.exception(), ValueError)
    await until(lambda: stats().idle == stats().threads)
    network.go_on()
    assert await count() == 3


@postgresql
async def test_read_ahead_in_a_transaction_is_not_stopped(network, rows, soon):
    """In a transaction what is read ahead is let finish: to break it would be to lose the rest."""
    go = threading.Event()
    queried = threading.Event()

    def wait():
        queried.set()
        assert apart(go.wait, GUARD)

    async with atomic():
        with at_second_fetch(wait):
            async with rows() as each:
                async for _ in each:
                    assert await asyncio.to_thread(queried.wait, GUARD)
                    break
            go.set()
        await User.objects.acreate(username="saved")
    assert await database_sync_to_async(User.objects.filter(username="saved").count)() == 1
    assert stats().discarded == 0


# Requests


@postgresql
@pytest.mark.parametrize("block", [None, in_pinned, in_atomic])
async def test_async_view(network, outside, soon, settings, block):
    """An async view whose client leaves comes to an end, and its worker is free."""

    async def view(request):
        await (block(User.objects.acount) if block else User.objects.acount())
        return HttpResponse()

    settings.ROOT_URLCONF = (path("", view),)
    settings.MIDDLEWARE = ()
    settings.ALLOWED_HOSTS = ["*"]
    client = request(BridgeMiddleware(get_asgi_application()))
    await client.send_input({"type": "http.request"})
    await outside.sees(1)
    network.stall()
    await client.send_input({"type": "http.disconnect"})
    await ended(client.future)
    await until(lambda: stats().idle == stats().threads)
    await goes_on(network, outside)


@postgresql
@pytest.mark.parametrize("holds", [True, False], ids=["request", "socket"])
async def test_task_of_a_request_or_socket(network, outside, soon, holds):
    """A handler that is cancelled gives its worker back, that of a socket too."""

    async def handler():
        async with in_context(holds):
            await User.objects.acount()

    task = asyncio.create_task(handler())
    await outside.sees(1)
    network.stall()
    await cancelled(task)
    await until(lambda: stats().idle == stats().threads)
    await goes_on(network, outside)


# The end of a process


CHILD = """
import asyncio, os, signal, sys, threading
import django
django.setup()
from django.contrib.auth.models import User
from django.db import connections
from ormbridge import atomic, database_sync_to_async, pinned, stats, stream
from ormbridge.core.connections import ThreadConnections
ThreadConnections.BOUND = 0.2  # as `soon` has it here
database = connections.settings["default"]
database["NAME"] = database["TEST"]["NAME"]
database["PORT"] = sys.argv[1]

async def call():
    await database_sync_to_async(User.objects.count)()

async def block():
    async with atomic():
        await call()

async def legacy():
    # As where libpq is older than 17.
    import psycopg
    type(psycopg.capabilities).has_cancel_safe = lambda self, check=False: False
    await call()

async def open_block():
    connected = asyncio.Event()
    block = atomic()
    async def enter():
        await block.__aenter__()
        await database_sync_to_async(connections["default"].ensure_connection)()
        print("open", flush=True)
        await asyncio.Event().wait()
    task = asyncio.create_task(enter())
    keep.append(task)
    await asyncio.Event().wait()

keep = []

async def main():
    task = asyncio.current_task()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        await globals()[sys.argv[2]]()
    except asyncio.CancelledError:
        print("cancelled", flush=True)

asyncio.run(main())
print("the loop has ended", flush=True)
"""


@postgresql
@pytest.mark.parametrize("what", ["call", "block", "legacy"])
def test_process_ends(network, outside, what):
    """A process that is told to end does so, though a cancelled call waits for the server."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(network.port), what],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "DJANGO_SETTINGS_MODULE": "tests.settings",
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        asyncio.run(outside.sees(1))
        network.stall()
        child.send_signal(signal.SIGTERM)
        output, _ = child.communicate(timeout=GUARD)
    finally:
        child.kill()
        child.communicate()
    assert output == "cancelled\nthe loop has ended\n"
    assert child.returncode == 0


@postgresql
async def test_worker_that_cleans_up_as_the_process_ends(network, stalled_reset):
    """The exit does not wait for a RESET that gets no answer."""
    async with in_context(holds=True):
        await database_sync_to_async(pid)()
    assert await asyncio.to_thread(stalled_reset.wait, GUARD)
    pool = default_pool()
    closing = asyncio.create_task(asyncio.to_thread(end, pool))
    await ended(closing)
    assert pool.stats().threads == 0
