"""A lease of a request or socket: what begins it, what ends it, and who waits for what."""

import asyncio
import threading
from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from channels.generic.websocket import WebsocketConsumer
from django.contrib.auth.models import User
from django.db import connection, connections, transaction

from ormbridge import (
    BridgeMiddleware,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
    release,
    stats,
    stream,
)
from ormbridge.asgi.context import LeaseContext
from ormbridge.core.call import Call
from ormbridge.core.mailbox import BATCH
from ormbridge.core.process import default_pool, end_pools
from ormbridge.core.worker import Worker, current
from ormbridge.leases.lease import Lease
from tests.core.gate import GUARD, apart, block_until
from tests.core.support import raw, thread_name, until
from tests.support.canceller import in_context
from tests.support.green import on_threads
from tests.support.http import connect, disconnect, get, say


def answering(work):
    """Return an application that answers with what ``work()``, a coroutine, returns."""

    async def application(scope, receive, send):
        body = str(await work()).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return BridgeMiddleware(application)


async def test_call_in_line_at_release_holds_again(gate):
    """A call made after release(), while another still runs, holds the worker again."""

    async def work():
        running = asyncio.create_task(sync_to_async(gate)())
        await gate.entered()
        await release()
        behind = asyncio.create_task(sync_to_async(thread_name)())
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(running, behind)
        return [holder[1] for holder in stats().holders]

    assert await get(answering(work)) == "200 ['GET /, idle']"


order = []


def note_reset(held):
    if held.alias == "default":
        order.append("reset")


async def test_call_after_release_is_never_served_by_the_lease_before(pool_settings):
    """What comes after release() meets a worker that was reset, however soon it comes."""
    pool_settings(MAX_THREADS=1, RESET=f"{__name__}.note_reset")
    order.clear()
    may_rest = threading.Event()
    next_call = Lease._next

    def slow_to_rest(lease, wait):
        if wait and lease.calls == 1:  # its outcome is handed over
            apart(may_rest.wait, GUARD)
        return next_call(lease, wait)

    async def work():
        await sync_to_async(order.append)("call")
        await release()
        second = asyncio.create_task(sync_to_async(order.append)("call"))
        await asyncio.sleep(0)
        may_rest.set()
        await second

    with mock.patch.object(Lease, "_next", slow_to_rest):
        await get(answering(work))
        await until(lambda: stats().idle == stats().threads)
    assert order == ["call", "reset"] * 2


@on_threads
async def test_call_that_comes_as_a_lease_ends_begins_another(monkeypatch):
    """A call that has found a lease which its worker leaves in this moment is not lost there."""
    put, forget, left = Lease.put, LeaseContext.forget, threading.Event()

    def put_as_it_ends(lease, *args):
        if lease.thread is not None:
            lease.release()
            assert left.wait(GUARD)
        return put(lease, *args)

    def leave(context, lease):
        left.set()
        forget(context, lease)

    async with in_context(holds=True):
        await sync_to_async(thread_name)()
        monkeypatch.setattr(LeaseContext, "forget", leave)
        monkeypatch.setattr(Lease, "put", put_as_it_ends)
        assert await sync_to_async(thread_name)() == "ormbridge-worker-2"


async def test_second_call_of_a_lease_that_waits_times_out(gate, pool_settings):
    """Of two calls that wait for one worker the second times out, though the first has left."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.01)
    ran = []

    async def work():
        calls = [asyncio.create_task(sync_to_async(ran.append)(n)) for n in range(2)]
        await until(lambda: stats().waiting == 1)
        calls[0].cancel()
        done, _ = await asyncio.wait(calls, timeout=GUARD)
        return [type(call.exception()).__name__ for call in calls[1:] if call in done]

    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    assert await get(answering(work)) == "200 ['PoolTimeout']"
    gate.open.set()
    await holder
    assert ran == []


async def test_call_after_one_that_left_the_line(gate, pool_settings):
    """After the only call of a request was cancelled in line, the next one still gets a worker."""
    pool_settings(MAX_THREADS=1)

    async def work():
        given_up = asyncio.create_task(sync_to_async(thread_name)())
        await until(lambda: stats().waiting == 1)
        given_up.cancel()
        await asyncio.wait([given_up])
        gate.open.set()
        return await sync_to_async(thread_name)()

    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    assert await get(answering(work)) == "200 ormbridge-worker-1"
    await holder


async def test_thread_sensitive_false_does_not_begin_the_hold():
    """A call with thread_sensitive=False that has a worker of its own holds none afterwards."""

    async def work():
        await database_sync_to_async(thread_name, thread_sensitive=False)()
        await until(lambda: stats().idle == 1)
        return len(stats().holders)

    assert await get(answering(work)) == "200 0"


async def test_nested_application_uses_the_worker_that_the_request_holds(pool_settings):
    """A request that asks its own application waits for no second worker."""
    pool_settings(MAX_THREADS=1)

    async def inner():
        return await sync_to_async(thread_name)()

    async def outer():
        await sync_to_async(thread_name)()
        send = mock.AsyncMock()
        await answering(inner)({"type": "http"}, mock.AsyncMock(), send)
        return send.await_args.args[0]["body"].decode()

    assert await get(answering(outer)) == "200 ormbridge-worker-1"


async def test_own_loop_in_a_sync_consumer_is_refused_at_once(pool_settings):
    """A handler of a synchronous consumer that runs a loop of its own gets an error, at once."""
    pool_settings(MAX_THREADS=1, TIMEOUT=2 * GUARD)

    async def below():
        try:
            return await sync_to_async(thread_name)()
        except PoolTimeout:
            return "refused"

    class Consumer(WebsocketConsumer):
        def receive(self, text_data=None, bytes_data=None):
            self.send(asyncio.run(below()))

    socket = await connect(BridgeMiddleware(Consumer.as_asgi()))
    assert await say(socket) == "refused"
    await disconnect(socket)


async def test_task_that_outlives_a_pool_timeout_waits_again(gate, pool_settings):
    """A task that outlives a request in which a call timed out waits for a worker like others."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.01)
    go_on = asyncio.Event()
    tasks = []

    async def outlive():
        await go_on.wait()
        return await sync_to_async(thread_name)()

    async def work():
        tasks.append(asyncio.create_task(outlive()))
        await sync_to_async(thread_name)()

    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    assert (await get(answering(work))).startswith("503")
    object.__setattr__(default_pool().settings, "timeout", GUARD)
    go_on.set()
    await until(lambda: stats().waiting == 1 or tasks[0].done())
    gate.open.set()
    assert await tasks[0] == "ormbridge-worker-1"
    await holder


async def test_held_worker_is_free_when_the_answer_is_complete(pool_settings):
    """A request gives its worker back with the last part of its answer, whatever it does then."""
    pool_settings(MAX_THREADS=1)
    go_on = asyncio.Event()

    async def application(scope, receive, send):
        await sync_to_async(thread_name)()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})
        await go_on.wait()

    client = asyncio.create_task(get(BridgeMiddleware(application)))
    await until(lambda: stats().calls)
    assert await database_sync_to_async(thread_name)() == "ormbridge-worker-1"
    go_on.set()
    assert await client == "200 done"


@pytest.mark.django_db(transaction=True)
async def test_connections_are_cleaned_again_after_a_held_lease(pool_settings, connection_settings):
    """After a held lease the worker closes connections that are too old, between leases of one."""
    pool_settings(MAX_THREADS=1)
    connection_settings(CONN_MAX_AGE=0)

    def ask():
        connection.ensure_connection()
        connection.close_if_unusable_or_obsolete()  # as channels.db does after each call
        return connection.connection is None

    async def work():
        return await sync_to_async(ask)()

    assert await get(answering(work)) == "200 False"
    await until(lambda: stats().idle == 1)
    assert await database_sync_to_async(ask)() is True


@pytest.mark.django_db(transaction=True)
async def test_connection_that_failed_half_way_in_a_held_lease_is_closed(connection_settings):
    """What a call has left of a connection is cleaned up after the lease, whatever came between."""
    connection_settings(CONN_MAX_AGE=0)
    connected = sync_to_async(lambda: connection.connection is not None)

    async def work():
        wrapper = type(connections["default"])
        with mock.patch.object(wrapper, "init_connection_state", side_effect=LookupError("half")):
            with pytest.raises(LookupError, match="half"):
                await sync_to_async(raw)()
        return await connected()

    assert await get(answering(work)) == "200 True"
    await until(lambda: stats().idle == 1)
    assert await get(answering(connected)) == "200 False"
    assert stats().threads == 1


async def test_request_without_a_thread_is_a_503(refuse, caplog):
    """A request for which no thread could be started is answered with 503; the next one works."""
    refuse()
    ran = []

    async def work():
        await sync_to_async(ran.append)("ran")

    assert await get(answering(work)) == "503 Service Unavailable"
    assert "GET /: no thread could be started (can't start new thread)" in caplog.text
    assert ran == []
    assert await get(answering(work)) == "200 None"
    assert ran == ["ran"]


async def test_view_without_a_thread_is_a_503(serve, refuse):
    """So is one of a view, for whose error Django has a page of its own."""

    async def view(request):
        await sync_to_async(len)("")

    refuse()
    assert (await get(serve(view))).startswith("503")


async def test_request_that_catches_the_refusal_goes_on(refuse):
    """Later calls of a request are refused with the same words, or run once a thread is there."""

    async def work():
        outcomes = []
        for number in range(3):
            try:
                outcomes.append(await sync_to_async(str)(number))
            except PoolTimeout as error:
                outcomes.append(str(error)[:26])
        return outcomes

    refuse(2)
    refused = "no thread could be started"
    assert await get(answering(work)) == f"200 {[refused, refused, '2']}"


async def test_calls_in_the_line_of_a_lease_without_a_thread(monkeypatch, pool_settings):
    """All calls that a request made meanwhile are refused, each with an error of its own."""
    pool_settings(MAX_THREADS=1)
    pool = default_pool()
    original, starting = Worker.start, threading.Event()

    def start(worker):
        if not starting.is_set():
            starting.set()
            block_until(lambda: [len(lease.waiting) for lease in pool._waiting.copy()] == [3])
            raise RuntimeError("can't start new thread")
        original(worker)

    async def work():
        calls = [sync_to_async(thread_name)() for _ in range(3)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        causes = {str(error.__cause__) for error in errors}
        return [len(set(map(id, errors))), causes]

    def in_another_thread():
        with pytest.raises(PoolTimeout):
            asyncio.run(database_sync_to_async(thread_name)())

    monkeypatch.setattr(Worker, "start", start)
    other = asyncio.create_task(asyncio.to_thread(in_another_thread))
    await asyncio.to_thread(starting.wait, GUARD)
    assert await get(answering(work)) == """200 [3, {"can't start new thread"}]"""
    await other


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("block", [atomic, pinned])
async def test_block_without_a_thread(block, refuse):
    """A block whose first call gets no thread fails with that error, and works once it gets one."""
    ran = []

    async def work():
        async with block():
            await database_sync_to_async(ran.append)("ran")

    refuse()
    with pytest.raises(PoolTimeout, match="no thread could be started"):
        await asyncio.wait_for(work(), GUARD)
    assert ran == []
    await work()
    assert ran == ["ran"]


async def test_pinned_block_that_catches_the_refusal_goes_on(refuse):
    """After the first call of a pinned() got no thread, the next ones share a worker."""
    refuse()
    async with pinned():
        with pytest.raises(PoolTimeout, match="no thread could be started"):
            await database_sync_to_async(thread_name)()
        calls = [database_sync_to_async(thread_name)() for _ in range(3)]
        names = await asyncio.wait_for(asyncio.gather(*calls), GUARD)
    assert len(set(names)) == 1


@pytest.mark.django_db(transaction=True)
async def test_stream_without_a_thread(refuse):
    """A stream that gets no thread raises that error, once; another one reads the rows."""
    await database_sync_to_async(User.objects.create)(username="ada")
    await asyncio.to_thread(end_pools, GUARD)

    async def read():
        return [user.username async for user in stream(User.objects.all())]

    refuse()
    with pytest.raises(PoolTimeout, match="no thread could be started"):
        await asyncio.wait_for(read(), GUARD)
    assert await asyncio.wait_for(read(), GUARD) == ["ada"]


async def test_no_second_thread_below_a_held_lease(refuse, pool_settings):
    """With thread_sensitive=False and no second thread, a call runs once, on the held worker."""
    pool_settings(MAX_THREADS=2)
    ran = []

    def note():
        ran.append(thread_name())

    async def work():
        held = await sync_to_async(thread_name)()
        refuse()
        await database_sync_to_async(note, thread_sensitive=False)()
        await sync_to_async(len)("")
        return ran == [held]

    assert await get(answering(work)) == "200 True"
    assert len(ran) == 1


@pytest.mark.django_db(transaction=True)
async def test_withdrawn_calls_are_placed_again_in_batches(gate, pool_settings):
    """However many calls move to the worker that their socket keeps, the loop turns between."""
    pool_settings(MAX_THREADS=1)
    loop = asyncio.get_running_loop()
    placed, most, before = [], 0, 0
    original = LeaseContext.place

    def place(context, call, *args, **kwargs):
        placed.append(call)
        original(context, call, *args, **kwargs)

    def turn():
        nonlocal most, before, watching
        most, before = max(most, len(placed) - before), len(placed)
        watching = loop.call_soon(turn)

    def begin():
        gate()
        transaction.set_autocommit(False)

    async def application(scope, receive, send):
        nonlocal before, watching
        first = asyncio.create_task(database_sync_to_async(begin)())
        await gate.entered()
        others = [database_sync_to_async(str)(number) for number in range(3 * BATCH)]
        gathered = asyncio.gather(*others)
        await asyncio.sleep(0)
        before = 0
        placed.clear()
        watching = loop.call_soon(turn)
        gate.open.set()
        await first
        assert await gathered == [str(number) for number in range(3 * BATCH)]
        watching.cancel()
        await database_sync_to_async(transaction.set_autocommit)(True)

    watching = loop.call_soon(len, "")
    with mock.patch.object(LeaseContext, "place", place):
        await BridgeMiddleware(application)({"type": "websocket", "path": "/"}, None, None)
    assert len(placed) == 3 * BATCH + 1
    assert 0 < most <= BATCH


async def test_worker_is_kept_before_its_caller_goes_on(monkeypatch):
    """Before a call's outcome is handed over, another worker may run in place of its own."""
    kept = []
    finish = Call.finish
    monkeypatch.setattr(
        Call,
        "finish",
        lambda call, *args: (kept.append(current() in default_pool().kept), finish(call, *args)),
    )
    assert await get(answering(sync_to_async(thread_name))) == "200 ormbridge-worker-1"
    assert kept == [True]
