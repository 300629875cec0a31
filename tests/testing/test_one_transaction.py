"""The one transaction that all calls of a test see, and the fixtures that make it."""

import asyncio
import contextvars
import gc
import threading
from contextlib import nullcontext

import pytest
from asgiref.sync import SyncToAsync, async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels.consumer import SyncConsumer
from channels.db import database_sync_to_async as channels_database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, connections, transaction
from django.db.utils import ConnectionHandler
from django.http import HttpResponse
from django.test import TestCase
from django.test.utils import CaptureQueriesContext
from django.urls import path

from ormbridge import (
    BridgeError,
    BridgeMiddleware,
    atomic,
    database_sync_to_async,
    pinned,
    stats,
)
from ormbridge.asgi.sync_to_async import on_route
from ormbridge.core import route as routes
from ormbridge.testing import capture_on_commit_callbacks, one_transaction
from tests.core.gate import GUARD
from tests.settings import CHOICE
from tests.support.http import connect, disconnect, get, say
from tests.support.ways import WAYS, count_and_close, in_a_view, make, names, on_a_loop_of_its_own


@pytest.mark.parametrize("way", WAYS)
async def test_calls_see_what_fixtures_made(bob, eve, way):
    """Every way to call the database sees what sync and async fixtures made, uncommitted."""
    assert await WAYS[way]() == ["bob", "eve"]
    assert await WAYS[way]() == ["bob", "eve"]


async def test_views_see_what_fixtures_made(bob, eve, settings):
    """A view that Django's AsyncClient calls sees what sync and async fixtures made."""
    assert await in_a_view(settings) == ["bob", "eve"]


@pytest.mark.parametrize("run", ["one", "two"])
async def test_what_calls_do_is_rolled_back(async_db, run):
    """What a test writes is gone in the next test: both runs of this one find no user."""
    assert await User.objects.acount() == 0
    await User.objects.acreate(username="made by an a-method")
    await database_sync_to_async(User.objects.create)(username="made by the bridge")
    assert await User.objects.acount() == 2


async def test_both_fixtures_share_a_connection_and_commit(async_db, transactional_db):
    """With both fixtures pytest-django commits, and calls still share the connection."""
    assert not await database_sync_to_async(lambda: connection.in_atomic_block)()
    await User.objects.acreate(username="committed")
    # There is no transaction that another connection could miss.
    assert await asyncio.to_thread(count_and_close) == 1


async def test_calls_run_one_at_a_time(async_db, gate):
    """Calls that are made at once take turns on one worker."""
    first = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    second = asyncio.create_task(sync_to_async(gate)())
    await asyncio.sleep(0)
    assert len(gate.threads) == 1
    gate.open.set()
    assert await first == await second
    assert stats().threads == 1


async def test_consumers_see_the_transaction(async_db, bob):
    """Async and sync consumers, with and without the middleware, see the transaction."""

    class Reader(AsyncWebsocketConsumer):
        async def receive(self, text_data):
            await self.send(text_data=" ".join(await channels_database_sync_to_async(names)()))

    class Writer(SyncConsumer):
        def websocket_connect(self, message):
            User.objects.create(username="made by a consumer")
            self.send({"type": "websocket.accept"})

    socket = await connect(Writer.as_asgi())
    for application in (Reader.as_asgi(), BridgeMiddleware(Reader.as_asgi())):
        reader = await connect(application)
        assert await say(reader) == "bob made by a consumer"
        await disconnect(reader)
    socket.stop()


async def test_user_is_put_into_the_scope(async_db, bob):
    """A consumer finds the user that a test has put into the scope of its communicator."""

    class Namer(AsyncWebsocketConsumer):
        async def receive(self, text_data):
            await self.scope["user"].arefresh_from_db()
            await self.send(text_data=self.scope["user"].username)

    scope = {"type": "websocket", "path": "/", "user": bob}
    socket = ApplicationCommunicator(Namer.as_asgi(), scope)
    assert await say(socket) == "bob"
    await disconnect(socket)


async def test_clean_up_leaves_the_transaction_alone(async_db, bob):
    """What closes old connections elsewhere, closes none in a transaction of a test."""
    await sync_to_async(connection.close_if_unusable_or_obsolete)()
    assert await database_sync_to_async(names)() == ["bob"]


async def test_clean_up_works_outside_of_transactions(async_db, transactional_db):
    """Where the test has no transaction, a connection that is too old is closed as ever."""

    def age_and_clean_up():
        connection.ensure_connection()
        connection.close_at = 0.0
        connection.close_if_unusable_or_obsolete()
        return connection.connection

    assert await database_sync_to_async(age_and_clean_up)() is None


@pytest.mark.parametrize("alone", [False, True])
async def test_other_connections_are_refused(async_db, bob, alone):
    """A thread around the pool can't open a connection: what it writes would stay."""
    call = asyncio.to_thread if not alone else sync_to_async(_call, thread_sensitive=False)
    with pytest.raises(BridgeError, match="does not see the transaction of the test"):
        await call(User.objects.count)
    assert await User.objects.acount() == 1


def _call(function):
    return function()


@pytest.mark.parametrize("block", [atomic, pinned])
def test_block_opened_before_the_test_is_refused(transactional_db, block):
    """What a fixture of the module has open is not in the transaction of the test."""
    opened = block()

    async def enter():
        await opened.__aenter__()
        await User.objects.acount()

    async def work():
        for call in (User.objects.acount, database_sync_to_async(User.objects.count)):
            with pytest.raises(BridgeError, match="which was opened before the test"):
                await call()
        with pytest.raises(BridgeError, match="which was opened before the test"):
            async with atomic():
                pass

    context = contextvars.copy_context()
    with asyncio.Runner() as runner:
        runner.run(enter(), context=context)
        with one_transaction("a test"):
            runner.run(work(), context=context)
        runner.run(opened.__aexit__(None, None, None), context=context)


async def test_connection_made_by_hand_is_allowed(async_db):
    """A connection that the test makes for itself is its own affair."""

    def select():
        other = connection.copy()
        try:
            with other.cursor() as cursor:
                cursor.execute("SELECT 1")
                return cursor.fetchone()[0]
        finally:
            other.close()

    assert await database_sync_to_async(select)() == 1


async def test_error_in_the_transaction(async_db):
    """A call that fails in a savepoint of its own leaves the transaction of the test usable."""
    await User.objects.acreate(username="bob")

    @database_sync_to_async
    def create_again():
        with transaction.atomic():
            User.objects.create(username="bob")

    with pytest.raises(IntegrityError):
        await create_again()
    assert await User.objects.acount() == 1


async def test_other_alias_of_the_settings_is_blocked(async_db):
    """A database that the test does not name in ``databases`` is refused, as in sync tests."""
    with pytest.raises(AssertionError, match="Database queries to 'other' are not allowed"):
        await database_sync_to_async(User.objects.using("other").count)()


if CHOICE != "sqlite":  # where two transactions lock each other out of the one test database

    @pytest.mark.django_db(databases=["default", "other"])
    async def test_other_alias_that_is_named(async_db):
        """Of several databases, each has its transaction."""

        def depths():
            return [connections[alias].in_atomic_block for alias in ("default", "other")]

        assert await database_sync_to_async(depths)() == [True, True]


async def test_task_that_outlives_its_request(async_db, bob, settings):
    """In the middleware, a task below a dead frame sees the transaction as well."""
    go_on = asyncio.Event()
    tasks = []

    async def outlive():
        await go_on.wait()
        return await sync_to_async(names)()

    async def view(request):
        tasks.append(asyncio.create_task(outlive()))
        return HttpResponse()

    from django.core.asgi import get_asgi_application

    settings.ROOT_URLCONF = (path("", view),)
    settings.MIDDLEWARE = ["tests.support.applications.SyncOnly"]
    settings.ALLOWED_HOSTS = ["*"]
    assert await get(BridgeMiddleware(get_asgi_application())) == "200"
    go_on.set()
    assert await tasks[0] == ["bob"]


# Counting queries, with Django's own means.


@pytest.mark.parametrize("way", WAYS)
async def test_queries_are_counted_around_awaits(bob, eve, way, django_assert_num_queries):
    """What counts queries in a synchronous test counts them around awaits, whoever asks."""
    for _ in range(2):
        with django_assert_num_queries(1) as queries, CaptureQueriesContext(connections["default"]):
            assert await WAYS[way]() == ["bob", "eve"]
        assert "auth_user" in queries[0]["sql"]


async def test_queries_in_blocks_are_counted(async_db, django_assert_num_queries):
    """The savepoint of a block counts: its beginning, and its end."""
    with django_assert_num_queries(3) as queries:
        async with atomic():
            await make("ann")
    assert [each["sql"].partition(" ")[0] for each in queries] == ["SAVEPOINT", "INSERT", "RELEASE"]


def test_queries_of_a_loop_are_counted(async_db, django_assert_num_queries):
    """In a synchronous test those before a loop, and of the loop."""
    with django_assert_num_queries(2):
        assert names() == []
        assert asyncio.run(database_sync_to_async(names)()) == []


async def test_connection_on_the_loop_is_that_of_the_test(async_db):
    """Code on the event loop finds the test's connection, and may not use it there."""
    own = await database_sync_to_async(lambda: connections["default"])()
    assert connections["default"] is own
    assert connection.in_atomic_block
    with pytest.raises(Exception, match="You cannot call this from an async context"):
        User.objects.count()


# Cancellation.


async def test_cancelled_call_runs_on(async_db, gate, caplog):
    """A call whose task is cancelled runs to its end, and the log says why it is not stopped."""
    task = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open.set()
    assert await User.objects.acount() == 0
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "tests.core.gate.Gate was cancelled, and runs to its end: the transaction of the test"
    )


async def test_cancelled_call_that_has_not_begun_is_not_logged(async_db, gate, caplog):
    """A call that was cancelled in line never begins, and there is nothing to say."""
    first = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    second = asyncio.create_task(database_sync_to_async(gate)())
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    gate.open.set()
    await first
    assert (len(gate.threads), caplog.records) == (1, [])


# Blocks.


async def test_atomic_is_a_savepoint(async_db, bob):
    """A block that fails takes back what it did, and nothing of the transaction around it."""

    @atomic
    async def fail():
        await User.objects.acreate(username="eve")
        assert await database_sync_to_async(names)() == ["bob", "eve"]
        raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        await fail()
    async with atomic():
        await User.objects.acreate(username="joe")
    assert await database_sync_to_async(names)() == ["bob", "joe"]
    assert stats().threads == 1


async def test_atomic_may_be_durable(async_db):
    """The transaction of the test does not count for ``durable``, as in Django's TestCase."""
    async with atomic(durable=True):
        await User.objects.acreate(username="eve")
    assert await User.objects.acount() == 1


async def test_atomic_in_tasks(async_db):
    """Blocks of several tasks take turns, and see each other's rows."""

    @atomic
    async def make(name):
        await User.objects.acreate(username=name)
        if name == "bad":
            raise ValueError(name)

    async with asyncio.timeout(GUARD):
        await asyncio.gather(*(make(name) for name in ("a", "bad", "b")), return_exceptions=True)
    assert await database_sync_to_async(names)() == ["a", "b"]


async def test_pinned(async_db, bob):
    """A pinned block is on the one worker, too."""
    async with pinned():
        assert await database_sync_to_async(names)() == ["bob"]
    assert stats().threads == 1


@pytest.mark.parametrize("block", [atomic, pinned])
def test_block_left_open(transactional_db, block):
    """A block that is still open as the test ends is named, with its place, and rolled back."""
    opened = block()

    async def leave_open():
        await opened.__aenter__()
        await User.objects.acreate(username="left")

    with transaction.atomic():
        with one_transaction("a test") as left:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(leave_open())
            loop.close()
        assert left[0].startswith(f"{block.__name__}() at test_one_transaction.py:")
        transaction.set_rollback(True)
    assert User.objects.count() == 0


# on_commit.


async def test_on_commit_is_captured(async_db, async_capture_on_commit_callbacks):
    """Callbacks are collected, also those of another alias not, and run only if asked to."""
    ran = []
    async with async_capture_on_commit_callbacks() as callbacks:
        await database_sync_to_async(transaction.on_commit)(lambda: ran.append("sync"))
    assert (len(callbacks), ran) == (1, [])


async def test_on_commit_is_run(async_db, async_capture_on_commit_callbacks):
    """Plain functions run on the worker, coroutine functions on the loop, later ones too."""
    ran = []

    def again():
        ran.append(threading.current_thread().name)
        transaction.on_commit(on_loop)

    async def on_loop():
        ran.append(threading.current_thread().name)

    async with async_capture_on_commit_callbacks(execute=True) as callbacks:
        await database_sync_to_async(transaction.on_commit)(again)
    assert ran == ["ormbridge-worker-1", threading.current_thread().name]
    assert callbacks == [again, on_loop]


@pytest.mark.parametrize("robust", [False, True])
async def test_on_commit_that_fails(async_db, async_capture_on_commit_callbacks, robust, caplog):
    """A callback that fails raises, or is logged if it is robust."""

    def fail():
        raise ValueError("of the callback")

    async def run():
        async with async_capture_on_commit_callbacks(execute=True):
            await database_sync_to_async(transaction.on_commit)(fail, robust=robust)

    if not robust:
        with pytest.raises(ValueError, match="of the callback"):
            await run()
    else:
        await run()
        assert "of the callback" in caplog.text


class OnCommitInDjangosTestCase(TestCase):
    """An async test of Django's ``TestCase``, where the loop has a thread of its own."""

    async def register(self, callback):
        async with atomic():
            await database_sync_to_async(transaction.on_commit)(callback)

    async def test_is_captured_and_run(self):
        """The helper collects and runs functions and coroutine functions, as they were given."""
        ran = []

        def plain():
            ran.append(User.objects.count())

        async def on_loop():
            ran.append(await User.objects.acount())

        async with capture_on_commit_callbacks(execute=True) as callbacks:
            await self.register(plain)
            await self.register(on_loop)
        assert (callbacks, ran) == ([plain, on_loop], [0, 0])

    async def test_djangos_own_finds_nothing(self):
        """Django's own looks at a connection of the loop's thread, and finds none there."""
        ran = []
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            await self.register(lambda: ran.append("ran"))
        assert (callbacks, ran) == ([], [])

    def test_djangos_own_in_a_synchronous_test(self):
        """In a synchronous test it collects what code below ``async_to_sync`` registers."""
        ran = []

        async def on_loop():
            ran.append(await User.objects.acount())

        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            async_to_sync(self.register)(on_loop)
        assert (len(callbacks), ran) == (1, [0])


class SynchronousInDjangosTestCase(TestCase):
    """A synchronous test of Django's ``TestCase``, to which the plugin does nothing."""

    def test_loop_does_not_see_the_transaction(self):
        """Code below ``async_to_sync`` is in the transaction, that of ``asyncio.run`` is not."""
        User.objects.create(username="bob")
        assert async_to_sync(database_sync_to_async(names))() == ["bob"]
        assert asyncio.run(database_sync_to_async(names)()) == []


# The end of a test. Without the fixtures, on whose ends a test could not look.


def test_everything_is_put_back(transactional_db):
    """After the test asgiref, the connections and the pool are as they were."""
    before = SyncToAsync.thread_sensitive_context
    gc.collect()  # contexts of the tests before
    contexts = len(SyncToAsync.context_to_thread_executor)
    connection.ensure_connection()
    patched = set(vars(connections["default"]))
    with transaction.atomic(), one_transaction("a test") as left:
        assert asyncio.run(database_sync_to_async(User.objects.count)()) == 0
        assert asyncio.run(on_a_loop_of_its_own()) == []
    assert left == []
    assert SyncToAsync.thread_sensitive_context is before
    assert len(SyncToAsync.context_to_thread_executor) == contexts
    assert set(vars(connections["default"])) == patched
    assert "__getitem__" not in vars(type(connections))
    assert routes.current_route.get() is None
    assert not connection.allow_thread_sharing
    own = connections["default"].connection
    assert asyncio.run(database_sync_to_async(lambda: connection.connection)()) is not own
    assert asyncio.run(asyncio.to_thread(count_and_close)) == 0


def test_worker_gets_its_own_connections_back(transactional_db, pool_settings):
    """A worker that had connections of its own has them again after the test."""
    pool_settings(MAX_THREADS=1)

    @database_sync_to_async
    def connected():
        connection.ensure_connection()
        return connections["default"]

    before = asyncio.run(connected())
    with one_transaction("a test"):
        assert asyncio.run(connected()) is connections["default"]
    assert asyncio.run(connected()) is before


def test_transaction_left_open(transactional_db):
    """A transaction that a test leaves open is reported, and undone."""

    def leave_open():
        transaction.atomic().__enter__()
        User.objects.create(username="left")

    with one_transaction("a test") as left:
        asyncio.run(database_sync_to_async(leave_open)())
    assert left == ["a transaction on 'default' was left open"]
    assert not connection.in_atomic_block
    assert User.objects.count() == 0


def test_savepoint_left_open(transactional_db):
    """A savepoint left open does not keep the test's own transaction from rolling back."""

    def leave_open():
        transaction.atomic().__enter__()
        User.objects.create(username="left")

    with transaction.atomic():
        with one_transaction("a test") as left:
            asyncio.run(database_sync_to_async(leave_open)())
        assert left == ["a transaction on 'default' was left open"]
        transaction.set_rollback(True)
    assert not connection.in_atomic_block
    assert User.objects.count() == 0


def test_call_that_still_runs(db, pool_settings, gate):
    """A call that does not end within TIMEOUT is named."""
    pool_settings(TIMEOUT=0.01)

    async def leave_running():
        task = asyncio.create_task(database_sync_to_async(gate)())
        await gate.entered()
        task.cancel()

    with one_transaction("a test") as left:
        asyncio.run(leave_running())
    gate.open.set()
    assert left == ["a test, in tests.core.gate.Gate on ormbridge-worker-1 still runs"]


def test_call_that_waits_is_refused(db, gate):
    """A call whose turn never came does not run after the test."""

    async def leave_waiting():
        calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(2)]
        await gate.entered()
        loop = asyncio.get_running_loop()
        end = loop.run_in_executor(None, leave.__exit__, None, None, None)
        with pytest.raises(BridgeError, match="a test has ended"):
            await calls[1]
        gate.open.set()
        await asyncio.gather(calls[0], end)

    leave = one_transaction("a test")
    left = leave.__enter__()
    asyncio.run(leave_waiting())
    assert left == []
    assert len(gate.threads) == 1


@pytest.mark.parametrize("below", ["the middleware", "nothing"])
def test_task_that_outlives_the_test(transactional_db, below):
    """A call of a task that lives on, on the loop of a session, uses the pool as it is."""
    loop = asyncio.new_event_loop()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def outlive():
        await database_sync_to_async(User.objects.count)()
        begun.set()
        await go_on.wait()
        return await database_sync_to_async(lambda: connections["default"])()

    async def begin():
        context = (
            on_route(routes.current_route.get()) if below == "the middleware" else nullcontext()
        )
        with context:
            task = asyncio.create_task(outlive())
        await begun.wait()
        return task

    with one_transaction("a test") as left:
        task = loop.run_until_complete(begin())
    go_on.set()
    assert loop.run_until_complete(task) is not connections["default"]
    assert left == []
    loop.close()


def other_handler():
    return ConnectionHandler({"default": connections.settings["default"]})


async def test_another_handler_has_connections_of_its_own(async_db):
    """What somebody makes of other settings is not the connection of the test."""
    assert other_handler()["default"] is not connections["default"]


def test_another_handler_has_connections_of_its_own_in_a_synchronous_test(db):
    """The same where ``db`` lends its transaction."""
    assert other_handler()["default"] is not connections["default"]
