"""Leases of a WebSocket connection: a worker for each call, kept while something is left open."""

import asyncio
import contextvars
import gc
import re
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.consumer import SyncConsumer
from channels.db import database_sync_to_async as channels_database_sync_to_async
from channels.generic.websocket import JsonWebsocketConsumer
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import QuerySet

from ormbridge import (
    BridgeMiddleware,
    PoolClosed,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    release,
    stats,
    stream,
)
from ormbridge.core import route as routes
from ormbridge.core.process import default_pool
from ormbridge.leases.lease import Lease
from tests.core.gate import GUARD
from tests.core.support import no_worker_is_leased, thread_name, until
from tests.support.applications import serve
from tests.support.canceller import in_context
from tests.support.http import connect, disconnect, say


async def test_sync_consumers_run_at_the_same_time(gate, pool_settings):
    """Handlers of synchronous consumers run in parallel, within the bound."""
    pool_settings(MAX_THREADS=3)

    class Consumer(JsonWebsocketConsumer):
        def receive_json(self, content, **kwargs):
            self.send_json(gate())

    application = BridgeMiddleware(Consumer.as_asgi())
    sockets = [await connect(application) for _ in range(5)]
    answers = [asyncio.create_task(say(socket, "1")) for socket in sockets]
    await gate.entered(3)
    await until(lambda: stats().waiting == 2)
    assert len(set(gate.threads)) == 3
    gate.open.set()
    await asyncio.gather(*answers)
    await disconnect(*sockets)
    assert stats().threads == 3


async def test_open_socket_holds_no_worker():
    """Between its messages an open socket holds no worker."""
    leased = []

    async def answer(text):
        await sync_to_async(thread_name)()
        leased.append(len(stats().holders))

    socket = await connect(serve(answer))
    await say(socket)
    assert leased == [0]
    await disconnect(socket)


async def test_calls_of_a_socket_run_at_the_same_time(gate):
    """Calls that a consumer gathers run on a worker each."""

    async def answer(text):
        calls = [asyncio.create_task(sync_to_async(gate)()) for _ in range(2)]
        await gate.entered(2)
        gate.open.set()
        return len(set(await asyncio.gather(*calls)))

    socket = await connect(serve(answer))
    assert await say(socket) == "2"
    await disconnect(socket)


async def test_message_without_calls_takes_no_worker():
    """A message that touches no database takes no worker, though Channels cleans up before it."""

    async def answer(text):
        return text

    socket = await connect(serve(answer))
    assert await say(socket, "hello") == "hello"
    await disconnect(socket)
    assert stats().threads == 0


@pytest.mark.django_db(transaction=True)
async def test_transaction_keeps_the_worker():
    """A transaction that spans calls stays on its worker, with all calls of the socket."""
    block = transaction.atomic()

    async def answer(text):
        await sync_to_async(block.__enter__)()
        await User.objects.acreate(username="ada")
        names = {
            await sync_to_async(thread_name)(),
            await channels_database_sync_to_async(thread_name)(),
            await database_sync_to_async(thread_name)(),
        }
        seen = await User.objects.acount(), len(stats().holders), len(names)
        await sync_to_async(block.__exit__)(None, None, None)
        await no_worker_is_leased()
        return *seen, await User.objects.acount()

    socket = await connect(serve(answer))
    assert await say(socket) == "(1, 1, 1, 1)"
    await disconnect(socket)


@pytest.mark.django_db(transaction=True)
async def test_other_sockets_stay_out_of_the_transaction():
    """A call of another socket does not land in a transaction that one holds open."""
    block = transaction.atomic()

    async def answer(text):
        if text == "begin":
            await sync_to_async(block.__enter__)()
            await User.objects.acreate(username="ada")
        elif text == "roll back":
            await sync_to_async(block.__exit__)(ValueError, ValueError(), None)
        return await User.objects.acount()

    application = serve(answer)
    one, other = await connect(application), await connect(application)
    assert await say(one, "begin") == "1"
    assert await say(other) == "0"
    assert await say(one, "roll back") == "0"
    await disconnect(one, other)


@pytest.mark.django_db(transaction=True)
async def test_two_tasks_with_a_transaction_each():
    """Two tasks of a socket that both hold a transaction open find each their own."""
    together = threading.Barrier(2, timeout=GUARD)

    def begin():
        together.wait()
        transaction.set_autocommit(False)
        return thread_name()

    async def task():
        begun = await sync_to_async(begin)()
        await asyncio.sleep(0)
        found = [await sync_to_async(thread_name)() for _ in range(3)]
        await sync_to_async(transaction.set_autocommit)(True)
        return set(found) == {begun}

    async def answer(text):
        return await asyncio.gather(task(), task())

    socket = await connect(serve(answer))
    assert await say(socket) == "[True, True]"
    await disconnect(socket)
    await no_worker_is_leased()


@pytest.mark.django_db(transaction=True)
async def test_disconnect_rolls_back_what_is_open(caplog):
    """A transaction that is open when the socket closes is rolled back, and the worker is free."""

    async def answer(text):
        await sync_to_async(transaction.atomic().__enter__)()
        await User.objects.acreate(username="ada")

    socket = await connect(serve(answer))
    await say(socket)
    await disconnect(socket)
    await no_worker_is_leased()
    assert await database_sync_to_async(User.objects.count)() == 0
    assert "it was rolled back" in caplog.text


async def test_websocket_lease_connection(pool_settings):
    """With WEBSOCKET_LEASE = "connection" a socket holds one worker until it closes."""
    pool_settings(WEBSOCKET_LEASE="connection")
    local = threading.local()

    class Consumer(SyncConsumer):
        def websocket_connect(self, message):
            local.user = "ada"
            self.send({"type": "websocket.accept"})

        def websocket_receive(self, message):
            self.send({"type": "websocket.send", "text": local.user})

    socket = await connect(BridgeMiddleware(Consumer.as_asgi()))
    assert await say(socket) == "ada"
    await until(lambda: [holder[1] for holder in stats().holders] == ["/, idle"])
    await socket.send_input({"type": "websocket.disconnect", "code": 1000})
    socket.stop(exceptions=False)
    await no_worker_is_leased()


async def test_release_in_a_connection_lease(pool_settings):
    """release() gives the worker of a socket back; the next call holds one again."""
    pool_settings(WEBSOCKET_LEASE="connection")

    async def answer(text):
        await sync_to_async(thread_name)()
        held = len(stats().holders)
        await release()
        await no_worker_is_leased()
        return held

    socket = await connect(serve(answer))
    assert await say(socket) == "1"
    assert await say(socket) == "1"
    await disconnect(socket)


@pytest.mark.django_db(transaction=True)
async def test_dead_connection_of_a_held_lease_is_replaced(pool_settings):
    """A connection that broke between two calls of a held lease is replaced for the next one."""
    pool_settings(WEBSOCKET_LEASE="connection")
    used = []

    def break_it():
        connection.ensure_connection()
        connection.errors_occurred = True
        connection.is_usable = lambda: False  # as SQLite never says
        used.append(connection.connection)

    async def answer(text):
        await sync_to_async(break_it)()
        return used[-1] is await sync_to_async(lambda: connection.connection)()

    socket = await connect(serve(answer))
    assert await say(socket) == "False"
    await disconnect(socket)


async def test_turn_in_a_lease_times_out(gate, pool_settings):
    """A call that waits too long for its turn on the held worker raises PoolTimeout."""
    pool_settings(WEBSOCKET_LEASE="connection", TIMEOUT=1e-3)
    ran = []

    def run():
        ran.append("ran")

    async def answer(text):
        running = asyncio.create_task(sync_to_async(gate)())
        await gate.entered()
        try:
            await sync_to_async(run)()
        except PoolTimeout as error:
            gate.open.set()
            await running
            return error

    socket = await connect(serve(answer))
    answer = await say(socket)
    assert re.match(
        rf"{re.escape(f'{__name__}.{run.__qualname__}')} waited \d+\.\d s for its turn on", answer
    )
    assert "which has /, in tests.core.gate.Gate. Calls of one lease run one at a time" in answer
    assert ran == []
    await disconnect(socket)


async def test_function_that_waits_for_another_loop(pool_settings):
    """Its call on a loop in a thread waits for the request, and times out; async_to_sync does."""
    pool_settings(MAX_THREADS=2, TIMEOUT=0.05)

    async def call():
        return await database_sync_to_async(thread_name)()

    def wait_for_it():
        with ThreadPoolExecutor(1) as executor:
            inside = contextvars.copy_context()
            return executor.submit(inside.run, asyncio.run, call()).result()

    async with in_context(holds=True):
        with pytest.raises(PoolTimeout, match="for its turn on ormbridge-worker-1, which has"):
            await database_sync_to_async(wait_for_it)()
        assert await database_sync_to_async(async_to_sync(call))() == "ormbridge-worker-1"


async def test_call_cancelled_while_it_waits_for_its_turn_never_runs(gate, pool_settings):
    """A call that is cancelled in the line of a held lease never runs; those behind it do."""
    pool_settings(WEBSOCKET_LEASE="connection")
    ran = []

    async def answer(text):
        running = asyncio.create_task(sync_to_async(gate)())
        await gate.entered()
        waiting = asyncio.create_task(sync_to_async(ran.append)("cancelled"))
        behind = asyncio.create_task(sync_to_async(ran.append)("behind"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        gate.open.set()
        await asyncio.gather(running, behind)
        return ran

    socket = await connect(serve(answer))
    assert await say(socket) == "['behind']"
    await disconnect(socket)


async def test_requests_in_a_row_do_not_keep_each_other():
    """Where a server starts a request in the context of the one before, the old ones are freed."""
    contexts = []
    variables = contextvars.copy_context()

    async def application(scope, receive, send):
        nonlocal variables
        await sync_to_async(thread_name)()
        contexts.append(weakref.ref(routes.current_route.get()))
        variables = contextvars.copy_context()

    scope = {"type": "http", "method": "GET", "path": "/"}
    for _ in range(5):
        request = BridgeMiddleware(application)(scope, mock.AsyncMock(), mock.AsyncMock())
        await asyncio.create_task(request, context=variables)
    # A thread may know for a moment what it did or, as the watchdog, saw.
    await until(lambda: gc.collect() is not None and not any(ref() for ref in contexts[:3]))
    assert len(set(map(id, contexts))) == 5


async def test_worker_of_another_context_does_not_wait(pool_settings):
    """An application that a worker runs in a loop of its own is refused a second worker."""
    pool_settings(MAX_THREADS=1)

    async def application(scope, receive, send):
        await sync_to_async(thread_name)()

    def run():
        scope = {"type": "websocket", "path": "/"}
        socket = BridgeMiddleware(application)(scope, mock.AsyncMock(), mock.AsyncMock())
        asyncio.run(socket)

    with pytest.raises(PoolTimeout, match=r"Use async_to_sync in place of asyncio\.run"):
        await database_sync_to_async(run)()


async def test_channel_scope(pool_settings):
    """Consumers of a worker process (scope type "channel") run on the pool as well."""
    names = []

    class Consumer(SyncConsumer):
        def job(self, message):
            names.append(thread_name())

    from asgiref.testing import ApplicationCommunicator

    scope = {"type": "channel", "channel": "jobs"}
    communicator = ApplicationCommunicator(BridgeMiddleware(Consumer.as_asgi()), scope)
    await communicator.send_input({"type": "job"})
    await until(lambda: names)
    communicator.stop(exceptions=False)
    assert names == ["ormbridge-worker-1"]


async def test_custom_close_old_connections_runs(monkeypatch):
    """What replaces channels.db.close_old_connections, as Channels' test client does, is called."""
    called = []
    monkeypatch.setattr("channels.db.close_old_connections", lambda: called.append(thread_name()))

    async def answer(text):
        await channels_database_sync_to_async(thread_name)()

    socket = await connect(serve(answer))
    await say(socket)
    await disconnect(socket)
    assert set(called) == {"ormbridge-worker-1"}


@pytest.mark.django_db(transaction=True)
async def test_transaction_begun_as_the_socket_ends_is_rolled_back(gate):
    """A call that ends after its socket and leaves a transaction open does not keep its worker."""

    def begin():
        transaction.set_autocommit(False)
        gate()

    async def answer(text):
        await sync_to_async(begin)()

    socket = await connect(serve(answer))
    await socket.send_input({"type": "websocket.receive", "text": ""})
    await gate.entered()
    socket.future.cancel()
    await asyncio.wait([socket.future])
    gate.open.set()
    await no_worker_is_leased()


async def test_socket_waits_again_after_a_pool_timeout(gate, pool_settings):
    """A socket whose call got no worker in time waits for the next one as long as ever."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e-3)

    async def answer(text):
        try:
            return await sync_to_async(str)(text)
        except PoolTimeout:
            return "timeout"

    socket = await connect(serve(answer))
    busy = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    assert await say(socket) == "timeout"
    object.__setattr__(default_pool().settings, "timeout", GUARD)
    answered = asyncio.create_task(say(socket, "waited"))
    await until(lambda: stats().waiting == 1)
    gate.open.set()
    assert await answered == "waited"
    await busy
    await disconnect(socket)


async def test_new_settings_leave_no_lease_behind(pool_settings, settings):
    """A socket that goes on after a change of the settings ends the lease it had before."""
    pool_settings(WEBSOCKET_LEASE="connection")

    async def answer(text):
        return await sync_to_async(threading.current_thread)()

    socket = await connect(serve(answer))
    await say(socket)
    (before,) = default_pool().workers
    pool_settings(WEBSOCKET_LEASE="connection", MAX_THREADS=1)
    await say(socket)
    await disconnect(socket)
    await asyncio.to_thread(before.join, GUARD)
    assert not before.is_alive()


async def test_call_cancelled_below_a_dead_frame_leaves_the_line(gate, pool_settings):
    """Below a dead frame too, a call that is cancelled while it waits leaves the line."""
    pool_settings(MAX_THREADS=1)
    go_on = asyncio.Event()
    tasks = []

    async def outlive():
        await go_on.wait()
        await sync_to_async(len)("")

    async def below():
        tasks.append(asyncio.create_task(outlive()))

    async def answer(text):
        await sync_to_async(async_to_sync(below))()

    socket = await connect(serve(answer))
    await say(socket)
    busy = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    go_on.set()
    await until(lambda: stats().waiting == 1)
    tasks[0].cancel()
    await asyncio.wait(tasks)
    await until(lambda: stats().waiting == 0)
    gate.open.set()
    await busy
    await disconnect(socket)


@pytest.mark.django_db(transaction=True)
async def test_socket_never_waits_for_a_second_worker(pool_settings):
    """A call that waits for a worker moves to the one that a transaction of its socket keeps."""
    pool_settings(MAX_THREADS=1)

    async def answer(text):
        begin = sync_to_async(transaction.set_autocommit)(False)
        _, name = await asyncio.gather(begin, sync_to_async(thread_name)())
        waiting = stats().waiting
        await sync_to_async(transaction.set_autocommit)(True)
        return f"{name}, {waiting} waiting"

    socket = await connect(serve(answer))
    assert await say(socket) == "ormbridge-worker-1, 0 waiting"
    await disconnect(socket)
    await no_worker_is_leased()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("iterate", [stream, QuerySet.aiterator])
async def test_tasks_in_the_body_of_an_iteration_need_no_second_worker(iterate, pool_settings):
    """Blocks of tasks that a socket gathers as it iterates run on the worker of the iteration."""
    pool_settings(MAX_THREADS=1)

    @atomic()
    async def save(user, name):
        await User.objects.filter(pk=user.pk).aupdate(first_name=name)

    async def answer(text):
        for name in ("ann", "bob", "eve"):
            await User.objects.acreate(username=name)
        users = User.objects.order_by("pk")
        async for user in iterate(users, chunk_size=2):
            await asyncio.gather(save(user, "once"), save(user, "twice"))
        return [user.first_name async for user in users]

    socket = await connect(serve(answer))
    assert await asyncio.wait_for(say(socket), GUARD) == "['twice', 'twice', 'twice']"
    await disconnect(socket)


async def test_dismissed_between_two_calls_no_call_is_lost(gate, monkeypatch, pool_settings):
    """A lease that the end of the process cuts off runs the call that it has taken already."""
    pool_settings(WEBSOCKET_LEASE="connection")
    take = Lease._next

    def dismissed_meanwhile(self, wait):
        call = take(self, wait)
        if call is not None and not wait:
            self.dismiss(PoolClosed("exit"))
        return call

    monkeypatch.setattr(Lease, "_next", dismissed_meanwhile)

    async def answer(text):
        running = asyncio.create_task(sync_to_async(gate)())
        await gate.entered()
        waiting = asyncio.create_task(sync_to_async(str)("ran"))
        await asyncio.sleep(0)
        gate.open.set()
        await running
        return await asyncio.wait_for(waiting, GUARD)

    socket = await connect(serve(answer))
    assert await say(socket) == "ran"
    await disconnect(socket)
