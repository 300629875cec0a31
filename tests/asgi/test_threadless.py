"""What Django and Channels send to a thread although it needs none is answered without a thread."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest import mock

import pytest
from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from channels import consumer
from channels.db import aclose_old_connections
from channels.generic.http import AsyncHttpConsumer
from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connection, reset_queries
from django.dispatch import Signal
from django.http import HttpResponse

from ormbridge import BridgeMiddleware, PoolTimeout, stats
from ormbridge.asgi.context import LeaseContext
from ormbridge.asgi.sync_to_async import on_route
from ormbridge.core.asgiref import child_of
from tests.core.support import thread_name, until
from tests.support.http import get, pong


async def test_shape_of_what_asgiref_submits(context, monkeypatch):
    """What asgiref submits ends in a partial of the user's function; inside a route nothing is."""
    submitted = []

    class Executor(ThreadPoolExecutor):
        def submit(self, job, /, *args, **kwargs):
            submitted.append(job)
            return super().submit(job, *args, **kwargs)

    with Executor(1) as executor, on_route(context):
        assert await sync_to_async(divmod)(7, 3) == (2, 1)
        assert submitted == []
        async with ThreadSensitiveContext(executor=executor):
            assert await sync_to_async(divmod)(7, 3) == (2, 1)
    (job,) = submitted
    assert job.func.__func__ is SyncToAsync.thread_handler
    child = child_of(job)
    assert isinstance(child, partial)
    assert child.func is divmod
    assert child.args == (7, 3)
    context.release(end=True)


async def test_executor_around_a_request(context):
    """One that was given around a request is not the innermost: the request is."""
    with ThreadPoolExecutor(1, thread_name_prefix="own") as executor:
        async with ThreadSensitiveContext(executor=executor):
            with on_route(context):
                assert await sync_to_async(thread_name)() == "ormbridge-worker-1"
            assert await sync_to_async(thread_name)() == "own_0"
    context.release(end=True)


async def test_executor_of_ones_own_inside_a_request(context):
    """In a ThreadSensitiveContext with an executor of one's own, asgiref's calls go to that one."""
    with ThreadPoolExecutor(1, thread_name_prefix="own") as executor:
        with on_route(context):
            async with ThreadSensitiveContext(executor=executor):
                assert await sync_to_async(thread_name)() == "own_0"
            assert await sync_to_async(thread_name)() == "ormbridge-worker-1"
    context.release(end=True)


async def test_clean_up_takes_no_worker(context):
    """Channels' aclose_old_connections is answered at once."""
    with on_route(context):
        await aclose_old_connections()
        await sync_to_async(close_old_connections)()
    assert stats().threads == 0


def test_receivers_of_the_request_signals_are_known():
    """Django connects nothing else to the signals than what is known to need no thread."""
    started, _ = request_started._live_receivers(None)
    finished, _ = request_finished._live_receivers(None)
    assert set(started) == {close_old_connections, reset_queries}
    assert set(finished) == {close_old_connections, close_caches, reset_urlconf}


@pytest.mark.parametrize("signal", [request_started, request_finished])
async def test_request_signals_take_no_worker(context, signal):
    """The signals of a request give each receiver's result, and take no worker."""
    expected = signal._live_receivers(None)[0]
    with on_route(context):
        assert await signal.asend(sender=None) == [(receiver, None) for receiver in expected]
    assert stats().threads == 0


async def test_robust_signals_take_no_worker(context):
    """asend_robust() takes no worker either."""
    with on_route(context):
        await request_started.asend_robust(sender=None)
    assert stats().threads == 0


@pytest.mark.parametrize("signal", [request_started, request_finished])
async def test_other_receivers_run_on_a_worker_that_is_not_held(context, signal):
    """A receiver of the project's own runs on a worker; it begins no hold."""

    def receiver(**kwargs):
        return thread_name()

    signal.connect(receiver)
    try:
        with on_route(context):
            results = await signal.asend(sender=None)
            await until(lambda: stats().idle == 1)
    finally:
        signal.disconnect(receiver)
    assert (receiver, "ormbridge-worker-1") in results


async def test_other_signals_run_on_the_worker_that_is_held(context):
    """A signal of the project's own is a call like any other."""
    signal = Signal()

    def receiver(**kwargs):
        return thread_name()

    signal.connect(receiver)
    with on_route(context):
        assert await signal.asend(sender=None) == [(receiver, "ormbridge-worker-1")]
        assert len(stats().holders) == 1
    context.release(end=True)


async def test_response_with_a_file_is_closed_on_a_worker(serve, tmp_path):
    """A response that has a file to close is closed on a worker, which is not held."""
    file = tmp_path / "file"
    file.write_text("text")
    closed = []

    class File:
        def __init__(self):
            self.file = file.open("rb")

        def read(self, size):
            return self.file.read(size)

        def close(self):
            closed.append(thread_name())
            self.file.close()

    async def view(request):
        response = HttpResponse("text")
        response._resource_closers.append(File().close)
        return response

    assert await get(serve(view)) == "200 text"
    assert closed == ["ormbridge-worker-1"]


async def test_response_with_a_close_of_its_own_is_closed_on_a_worker(serve):
    """A response class that does more in close() is closed on a worker."""
    closed = []

    class Audited(HttpResponse):
        def close(self):
            super().close()
            closed.append(thread_name())

    async def view(request):
        return Audited("text")

    assert await get(serve(view)) == "200 text"
    assert closed == ["ormbridge-worker-1"]


async def test_rendering_a_response_begins_the_hold(context):
    """A method of a response other than close() is a call like any other."""

    class Rendered(HttpResponse):
        def render(self):
            return thread_name()

    with on_route(context):
        assert await sync_to_async(Rendered().render)() == "ormbridge-worker-1"
        assert len(stats().holders) == 1
    context.release(end=True)


@pytest.mark.django_db(transaction=True)
async def test_response_is_closed_on_a_worker_where_the_loop_has_a_connection(serve, monkeypatch):
    """Where the event loop's own thread has a connection, request_finished goes to a worker."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

    async def view(request):
        return HttpResponse("text")

    application = serve(view)

    async def closing(scope, receive, send):
        connection.ensure_connection()
        await application(scope, receive, send)
        connection.close()

    assert await get(closing) == "200 text"
    assert stats().threads == 1


async def test_queries_are_reset_as_a_request_gets_its_worker(serve, settings):
    """With DEBUG a request does not see the queries of the one before on its worker."""
    settings.DEBUG = True
    seen = []

    def look():
        seen.append(len(connection.queries_log))
        connection.queries_log.append({"sql": "SELECT 1", "time": "0"})

    async def view(request):
        await sync_to_async(look)()
        await sync_to_async(look)()
        return HttpResponse()

    application = serve(view)
    for _ in range(2):
        await get(application)
        await until(lambda: stats().idle == 1)
    assert seen == [0, 1, 0, 1]


async def test_channels_goes_through_no_executor_before_a_message():
    """Inside a context, Channels' clean-up before a message does not even go through asgiref."""

    async def application(scope, receive, send):
        return None

    BridgeMiddleware(application)
    calls = []
    with (
        mock.patch.object(SyncToAsync, "__call__", calls.append),
        on_route(LeaseContext("/", holds=False)),
    ):
        await consumer.aclose_old_connections()
    assert calls == []


async def test_channels_cleans_up_outside_of_any_context(monkeypatch):
    """Without a context around it, Channels' clean-up runs where it always did."""

    async def application(scope, receive, send):
        return None

    BridgeMiddleware(application)
    threads = []
    clean_up = "ormbridge.core.bridge.close_old_connections_outside_transactions"
    monkeypatch.setattr(clean_up, lambda: threads.append(thread_name()))
    await consumer.aclose_old_connections()
    assert len(threads) == 1
    assert not threads[0].startswith("ormbridge-worker")


async def test_http_consumer():
    """A consumer of HTTP, which cleans up through channels.db, takes no worker without calls."""

    class Consumer(AsyncHttpConsumer):
        async def handle(self, body):
            await self.send_response(200, b"done")

    assert await get(BridgeMiddleware(Consumer.as_asgi())) == "200 done"
    assert stats().threads == 0


async def test_asynchronous_receiver_of_the_end_of_a_request(serve):
    """An asynchronous receiver of request_finished is called."""
    called = []

    async def receiver(**kwargs):
        called.append(thread_name())

    request_finished.connect(receiver)
    try:
        assert await get(serve(pong)) == "200 pong"
    finally:
        request_finished.disconnect(receiver)
    assert called == [thread_name()]


async def test_asynchronous_receiver_of_the_start_takes_no_worker(serve):
    """An asynchronous receiver of request_started takes no worker."""
    called = []

    async def receiver(**kwargs):
        called.append(thread_name())

    request_started.connect(receiver)
    try:
        assert await get(serve(pong)) == "200 pong"
    finally:
        request_started.disconnect(receiver)
    assert called == [thread_name()]
    assert stats().threads == 0


# Receivers of the project's own, and no worker for them.


@pytest.fixture
async def full(pool_settings, gate):
    """Have the only worker of the pool taken until the gate is open."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.05)
    context = LeaseContext("GET /slow", holds=True)
    with on_route(context):
        holding = asyncio.create_task(sync_to_async(gate)())
    await gate.entered()
    yield
    gate.open.set()
    await holding
    context.release(end=True)


@pytest.fixture(params=[request_started, request_finished], ids=["started", "finished"])
def count_requests(request):
    """Connect a receiver to one of the signals, and return it."""

    def count_requests(**kwargs):
        raise AssertionError("there was no worker to call it")

    request.param.connect(count_requests)
    yield count_requests
    request.param.disconnect(count_requests)


async def test_request_goes_on_where_its_signals_get_no_worker(serve, full, count_requests, caplog):
    """A request whose receivers get no worker in time goes on, and an error names them."""
    assert await get(serve(pong)) == "200 pong"
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("ormbridge", "ERROR")
    told = record.getMessage()
    assert told.startswith(f"GET / goes on without ['{count_requests.__qualname__}']: waited ")
    assert "1 of 1 leased" in told


async def test_response_of_a_receiver_that_got_no_worker(context, full, count_requests):
    """Who sends the signal gets the PoolTimeout as the response, as of send_robust()."""
    signal = next(
        each
        for each in (request_started, request_finished)
        if count_requests in each._live_receivers(None)[0]
    )
    with on_route(context):
        responses = dict(await signal.asend(sender=None))
    assert isinstance(responses[count_requests], PoolTimeout)


async def test_request_waits_once_for_its_signals(serve, full, caplog):
    """Once its receivers have waited in vain, a request waits for nothing more."""

    def count_requests(**kwargs):
        raise AssertionError("there was no worker to call it")

    for signal in (request_started, request_finished):
        signal.connect(count_requests)
    try:
        assert await get(serve(pong)) == "200 pong"
    finally:
        for signal in (request_started, request_finished):
            signal.disconnect(count_requests)
    waits = [record.getMessage().partition("waited ")[2][:3] for record in caplog.records]
    assert waits == ["0.1", "0.0"]


async def test_receiver_runs_as_soon_as_there_is_a_worker(serve, pool_settings, gate):
    """A receiver waits for a worker, and the request for the receiver."""
    pool_settings(MAX_THREADS=1)
    seen = []

    def receiver(**kwargs):
        seen.append("receiver")

    async def view(request):
        seen.append("view")
        return HttpResponse("pong")

    context = LeaseContext("GET /slow", holds=False)
    with on_route(context):
        holding = asyncio.create_task(sync_to_async(gate)())
    await gate.entered()
    request_started.connect(receiver)
    try:
        answer = asyncio.create_task(get(serve(view)))
        await until(lambda: stats().waiting == 1)
        assert seen == []
        gate.open.set()
        assert await answer == "200 pong"
    finally:
        request_started.disconnect(receiver)
    await holding
    assert seen == ["receiver", "view"]


async def test_cancelled_while_its_receivers_wait(serve, pool_settings, gate):
    """A request that is given up while its receivers wait leaves the line."""
    pool_settings(MAX_THREADS=1)
    context = LeaseContext("GET /slow", holds=False)
    with on_route(context):
        holding = asyncio.create_task(sync_to_async(gate)())
    await gate.entered()

    def receiver(**kwargs):
        raise AssertionError("its request was given up")

    request_started.connect(receiver)
    try:
        answer = asyncio.create_task(get(serve(pong)))
        await until(lambda: stats().waiting == 1)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        await until(lambda: stats().waiting == 0)
    finally:
        request_started.disconnect(receiver)
    gate.open.set()
    await holding
