"""What Django and Channels send to a thread although it needs none is answered without a thread."""

import threading
from functools import partial

import pytest
from asgiref.sync import SyncToAsync, sync_to_async
from channels import consumer
from channels.db import aclose_old_connections
from channels.generic.http import AsyncHttpConsumer
from django.core.asgi import get_asgi_application
from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connection, reset_queries
from django.dispatch import Signal
from django.http import HttpResponse
from django.urls import path

from ormbridge import BridgeMiddleware, stats
from ormbridge.context import LeaseContext
from ormbridge.frames import on_ground
from tests.guide.http import get
from tests.test_call import until


@pytest.fixture
async def context():
    """Run the test in a context that holds, as an HTTP request's does."""
    return LeaseContext("GET /", holds=True, waits_once=True)


def thread_name():
    return threading.current_thread().name


async def test_shape_of_what_asgiref_submits(context, monkeypatch):
    """What asgiref submits ends in a partial of the user's function, of which the answers rest."""
    submitted = []
    submit = context.submit
    monkeypatch.setattr(context, "submit", lambda job: submitted.append(job) or submit(job))
    async with on_ground(context):
        assert await sync_to_async(divmod)(7, 3) == (2, 1)
    (job,) = submitted
    assert job.func.__func__ is SyncToAsync.thread_handler
    child = job.args[-1]
    assert isinstance(child, partial)
    assert child.func is divmod
    assert child.args == (7, 3)
    context.release(end=True)


async def test_clean_up_takes_no_worker(context):
    """Channels' aclose_old_connections is answered at once."""
    async with on_ground(context):
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
    async with on_ground(context):
        assert await signal.asend(sender=None) == [(receiver, None) for receiver in expected]
    assert stats().threads == 0


@pytest.mark.parametrize("signal", [request_started, request_finished])
async def test_other_receivers_run_on_a_worker_that_is_not_held(context, signal):
    """A receiver of the project's own runs on a worker; it begins no hold."""

    def receiver(**kwargs):
        return thread_name()

    signal.connect(receiver)
    try:
        async with on_ground(context):
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
    async with on_ground(context):
        assert await signal.asend(sender=None) == [(receiver, "ormbridge-worker-1")]
        assert len(stats().holders) == 1
    context.release(end=True)


@pytest.fixture
def serve(settings):
    """Return a function that makes an ASGI application of one view, with the middleware."""

    def make(view):
        settings.ROOT_URLCONF = (path("", view),)
        settings.ALLOWED_HOSTS = ["*"]
        return BridgeMiddleware(get_asgi_application())

    return make


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

    async with on_ground(context):
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
    BridgeMiddleware(application)
    aclose = consumer.aclose_old_connections
    assert aclose.__wrapped__ is aclose_old_connections  # replaced once, however many there are
    calls = []
    context = LeaseContext("/", holds=False, waits_once=False)
    context.submit = calls.append
    async with on_ground(context):
        await aclose()
    assert calls == []


async def test_channels_cleans_up_outside_of_any_context(monkeypatch):
    """Without a context around it, Channels' clean-up runs where it always did."""

    async def application(scope, receive, send):
        return None

    BridgeMiddleware(application)
    threads = []
    monkeypatch.setattr("channels.db.close_old_connections", lambda: threads.append(thread_name()))
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
