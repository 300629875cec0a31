"""What Django and Channels send to a thread although it needs none is answered without a thread."""

import asyncio
import functools
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from unittest import mock

import pytest
from asgiref.sync import SyncToAsync, ThreadSensitiveContext, async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels import consumer
from channels.db import aclose_old_connections
from channels.generic.http import AsyncHttpConsumer
from django.contrib import messages
from django.contrib.auth.models import AnonymousUser
from django.contrib.messages.storage.cookie import CookieStorage
from django.contrib.sessions.backends.signed_cookies import SessionStore as SessionOfCookies
from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connection, reset_queries
from django.dispatch import Signal, dispatcher
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import get_token
from django.middleware.security import SecurityMiddleware
from django.utils.decorators import async_only_middleware
from django.utils.functional import SimpleLazyObject

from ormbridge import BridgeMiddleware, PoolTimeout, stats
from ormbridge.asgi.context import LeaseContext
from ormbridge.asgi.sync_to_async import on_route
from ormbridge.core.asgiref import child_of
from tests.bench.contestant import MIDDLEWARE
from tests.core.gate import GUARD
from tests.core.support import thread_name, until
from tests.support.http import SERVER, get


@pytest.fixture
async def context():
    """Run the test in a context that holds, as an HTTP request's does."""
    return LeaseContext("GET /", holds=True, is_request=True)


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
    BridgeMiddleware(application)
    aclose = consumer.aclose_old_connections
    assert aclose.__wrapped__ is aclose_old_connections  # replaced once, however many there are
    calls = []
    context = LeaseContext("/", holds=False)
    context.submit = calls.append
    with on_route(context):
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


# What tools that trace calls put around all that. The real ones are in tests/instrumentation.


class Proxy:
    """An object proxy, as wrapt has them: what it does not have, it asks what it wraps for."""

    def __init__(self, wrapped, calls):
        self.__wrapped__ = wrapped
        self.calls = calls

    def __getattr__(self, name):
        return getattr(self.__wrapped__, name)

    def __call__(self, *args, **kwargs):
        self.calls.append(thread_name())
        return self.__wrapped__(*args, **kwargs)


def wrapped(function, calls):
    """Wrap *function* as a decorator does; *calls* gets the name of the thread of each call."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        calls.append(thread_name())
        return function(*args, **kwargs)

    return wrapper


def wrapped_thrice(function, calls):
    return wrapped(Proxy(wrapped(function, []), []), calls)


def wrapped_in_partial(function, calls):
    return partial(wrapped(partial(function), calls))


WRAPPERS = [wrapped, Proxy, wrapped_thrice, wrapped_in_partial]


@pytest.fixture
def calls():
    return []


@pytest.fixture
def wrap_receivers(monkeypatch, calls):
    """Return a function that has each receiver wrapped with each call, as Sentry has them."""
    live = Signal._live_receivers

    def wrap_with(wrap):
        def live_receivers(self, sender):
            receivers, asynchronous = live(self, sender)
            if self not in (request_started, request_finished):
                return receivers, asynchronous
            return [wrap(receiver, calls) for receiver in receivers], asynchronous

        monkeypatch.setattr(Signal, "_live_receivers", live_receivers)

    return wrap_with


async def pong(request):
    """Answer without a query."""
    return HttpResponse("pong")


@pytest.mark.parametrize("wrap", WRAPPERS)
async def test_wrapped_receivers_take_no_worker(serve, wrap_receivers, calls, wrap):
    """Django's own receivers, in the wrappers of a tool, are called on the loop's thread."""
    wrap_receivers(wrap)
    assert await get(serve(pong)) == "200 pong"
    assert stats().threads == 0
    assert calls == [thread_name()] * 5  # two as it starts, three as it ends


async def test_wrapped_receivers_give_their_results(context, wrap_receivers):
    """Who sends the signal gets each wrapper with what it returned."""
    wrap_receivers(wrapped)
    with on_route(context):
        results = await request_started.asend(sender=None)
    # In whatever order: who counts queries connects reset_queries anew.
    assert {(receiver.__wrapped__, response) for receiver, response in results} == {
        (reset_queries, None),
        (close_old_connections, None),
    }


@pytest.mark.parametrize("wrap", WRAPPERS)
async def test_wrapped_clean_up_takes_no_worker(context, calls, wrap):
    """What a tool wraps around close_old_connections is called, on the loop's thread."""
    with on_route(context):
        await sync_to_async(wrap(close_old_connections, calls))()
    assert stats().threads == 0
    assert calls == [thread_name()]


@pytest.mark.parametrize("wrap", WRAPPERS)
async def test_wrapped_sender_takes_no_worker(serve, monkeypatch, calls, wrap):
    """So is what a tool wraps around the function that a signal sends to a thread."""
    monkeypatch.setattr(dispatcher, "sync_to_async", lambda send: sync_to_async(wrap(send, calls)))
    assert await get(serve(pong)) == "200 pong"
    assert stats().threads == 0
    assert calls == [thread_name()]


async def test_robust_signals_take_no_worker(context):
    """asend_robust() takes no worker either."""
    with on_route(context):
        await request_started.asend_robust(sender=None)
    assert stats().threads == 0


@pytest.mark.parametrize("place", ["class", "instance", "both"])
@pytest.mark.parametrize("wrap", [wrapped, wrapped_thrice])
async def test_wrapped_close_of_a_response_takes_no_worker(serve, monkeypatch, calls, wrap, place):
    """So is what a tool wraps around the close() of responses, of their class or of one of them."""
    if place != "instance":
        monkeypatch.setattr(HttpResponse, "close", wrap(HttpResponse.close, calls))

    async def view(request):
        response = HttpResponse("text")
        if place != "class":
            response.close = wrap(response.close, calls)
        return response

    assert await get(serve(view)) == "200 text"
    assert stats().threads == 0
    assert calls == [thread_name()] * (2 if place == "both" else 1)


async def test_wrapped_close_of_a_class_of_its_own_needs_a_worker(serve, calls):
    """A wrapper around a close() that does more makes no difference: it needs a worker."""

    class Audited(HttpResponse):
        def close(self):
            super().close()

    async def view(request):
        response = Audited("text")
        response.close = wrapped(response.close, calls)
        return response

    assert await get(serve(view)) == "200 text"
    assert calls == ["ormbridge-worker-1"]


@pytest.mark.parametrize("wrap_too", [False, True])
async def test_keyword_for_a_wrapped_thread_handler(serve, monkeypatch, wrap_receivers, wrap_too):
    """A tool may hand something on to its thread_handler by a keyword of every call."""
    # As New Relic does: without its thread_handler, the function would get the keyword.
    call, handle = SyncToAsync.__call__, SyncToAsync.thread_handler
    handled = []

    async def traced(self, *args, **kwargs):
        return await call(self, *args, **kwargs, _trace="trace")

    def thread_handler(self, *args, **kwargs):
        handled.append(args[-1].keywords.pop("_trace"))
        return handle(self, *args, **kwargs)

    monkeypatch.setattr(SyncToAsync, "__call__", traced)
    monkeypatch.setattr(SyncToAsync, "thread_handler", thread_handler)
    if wrap_too:
        wrap_receivers(wrapped)
    assert await get(serve(pong)) == "200 pong"
    assert stats().threads == 0
    assert set(handled) == {"trace"}


async def test_thread_handler_that_is_a_proxy(serve, monkeypatch, wrap_receivers, calls):
    """A thread_handler that is replaced changes nothing."""
    monkeypatch.setattr(SyncToAsync, "thread_handler", wrapped(SyncToAsync.thread_handler, calls))
    wrap_receivers(wrapped)
    assert await get(serve(pong)) == "200 pong"
    assert stats().threads == 0


variable = ContextVar("variable", default="as before")


async def test_variables_that_a_wrapper_sets(context, monkeypatch):
    """A context variable that a wrapper sets is set for the caller, as asgiref has it."""

    @functools.wraps(close_old_connections)
    def wrapper():
        variable.set("by the wrapper")

    with on_route(context):
        await sync_to_async(wrapper)()
        assert variable.get() == "by the wrapper"
    assert stats().threads == 0


async def test_error_of_a_wrapper(context):
    """What a wrapper raises comes to the caller."""

    @functools.wraps(close_old_connections)
    def wrapper():
        raise ValueError("the tool is broken")

    with on_route(context):
        with pytest.raises(ValueError, match="the tool is broken"):
            await sync_to_async(wrapper)()


class Unbound:
    """As a proxy of Werkzeug's outside of its request."""

    def __getattr__(self, name):
        if name == "__wrapped__":
            raise RuntimeError("working outside of a request")
        raise AttributeError(name)

    def __call__(self):
        return thread_name()


def endless():
    return thread_name()


endless.__wrapped__ = endless


def odd():
    return thread_name()


odd.__wrapped__ = "nothing that can be called"


@pytest.mark.parametrize("function", [Unbound(), endless, odd, mock.Mock(side_effect=thread_name)])
async def test_odd_functions_run_on_a_worker(context, function):
    """What a function says that it wraps may be anything; then it runs on a worker."""
    with on_route(context):
        assert await sync_to_async(function)() == "ormbridge-worker-1"
    context.release(end=True)


async def test_mock_of_a_call_has_no_end_of_wrappers(context):
    """An object that invents what it wraps is asked a bounded number of times."""
    closed = []
    response = HttpResponse()
    response._resource_closers.append(mock.call)
    response._resource_closers.append(lambda: closed.append(thread_name()))
    with on_route(context):
        await sync_to_async(response.close)()
    assert closed == ["ormbridge-worker-1"]


@pytest.mark.django_db(transaction=True)
async def test_wrapped_clean_up_where_the_loop_has_a_connection(context, monkeypatch, calls):
    """Where the event loop's own thread has a connection, a wrapped clean-up goes to a worker."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    connection.ensure_connection()
    with on_route(context):
        await sync_to_async(wrapped(close_old_connections, calls))()
    connection.close()
    assert calls == ["ormbridge-worker-1"]


def test_thread_of_the_loop_is_no_worker_afterwards(serve, wrap_receivers):
    """On a thread whose loop answered, async_to_sync works while the loop does not run."""
    wrap_receivers(wrapped)
    application = serve(pong)

    async def three():
        return 3

    with asyncio.Runner() as runner:
        assert runner.run(get(application)) == "200 pong"
        # asgiref would wait for that loop, if this thread were one of those that it waits for.
        assert async_to_sync(three)() == 3


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


@async_only_middleware
def session_of_ones_own(get_response):
    async def middleware(request):
        request.session = {}
        return await get_response(request)

    return middleware


class Subclass(SecurityMiddleware):
    """May do anything in what Django's own method asks it."""


OF_HEADERS = [
    f"{__name__}.session_of_ones_own",
    *("django.middleware.security.SecurityMiddleware", "django.middleware.csrf.CsrfViewMiddleware"),
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


async def test_headers_and_cookies_take_no_worker(serve):
    """Django's middleware that asks neither the database nor the body takes no worker."""

    async def view(request):
        return HttpResponse(f"{get_token(request) != ''} {request.user.is_anonymous}")

    def lazily(request):
        return AnonymousUser()

    with mock.patch("django.contrib.auth.middleware.get_user", lazily):
        assert await get(serve(view, *OF_HEADERS)) == "200 True True"
    assert stats().threads == 0


@pytest.fixture
def placed(monkeypatch):
    """Return what is sent to a worker: steps of the middleware of sessions and messages."""
    placed = []
    place = LeaseContext.place

    def note(self, call):
        _, _, method = str(call).partition("SessionMiddleware.")
        placed.append(f"session {method}" if method else f"messages {str(call).rpartition('.')[2]}")
        place(self, call)

    monkeypatch.setattr(LeaseContext, "place", note)
    return placed


async def test_middleware_that_startproject_writes_down(serve, placed):
    """None of its thirteen calls takes a worker."""
    assert (await get(serve(pong, *MIDDLEWARE))).startswith("200 ")
    assert placed == []
    assert stats().threads == 0


async def test_sessions_and_messages_are_saved_on_a_worker(serve, settings, placed):
    """A session that was changed, and a message that was added or shown."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"

    async def change(request):
        request.session["seen"] = True
        return HttpResponse()

    async def add(request):
        messages.info(request, "hello")
        return HttpResponse()

    async def show(request):
        return HttpResponse(list(messages.get_messages(request)))

    for view, expected in (
        (change, ["session process_response"]),
        (add, ["messages process_response"]),
        (show, ["messages process_response"]),
    ):
        assert (await get(serve(view, *MIDDLEWARE))).startswith("200")
        assert placed == expected
        placed.clear()


class SessionStore(SessionOfCookies):
    """A project's own: who knows what it does."""


class MessageStorage(CookieStorage):
    """The same for messages."""


ALL_OF_SESSIONS = ["session process_request", "session process_response"]
ALL_OF_MESSAGES = ["messages process_request", "messages process_response"]


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("SESSION_ENGINE", __name__, ALL_OF_SESSIONS),
        ("MESSAGE_STORAGE", f"{__name__}.MessageStorage", ALL_OF_MESSAGES),
        (
            "SESSION_SAVE_EVERY_REQUEST",
            True,
            [ALL_OF_SESSIONS[0], *ALL_OF_MESSAGES, ALL_OF_SESSIONS[1]],
        ),
    ],
)
async def test_sessions_of_ones_own_take_a_worker(
    serve, settings, placed, setting, value, expected
):
    """Sessions and messages that others keep run on a worker; and what is saved each time."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    setattr(settings, setting, value)
    assert (await get(serve(pong, *MIDDLEWARE))).startswith("200 ")
    assert placed == expected


async def test_session_that_was_replaced_takes_a_worker(serve, placed):
    """What another middleware has put in the place of the session is not asked on the loop."""

    async def view(request):
        request.session = SimpleLazyObject(lambda: SessionStore() if thread_name() else None)
        return HttpResponse()

    assert await get(serve(view, *MIDDLEWARE)) == "200"
    assert placed == ["session process_response"]


async def test_middleware_called_by_keyword_takes_a_worker(context):
    """Who calls a middleware by himself, in another form than Django, is served."""
    middleware = SecurityMiddleware(lambda request: HttpResponse())
    with on_route(context):
        assert await sync_to_async(middleware.process_request)(request=HttpRequest()) is None
    assert stats().threads == 1
    context.release(end=True)


async def test_error_of_a_middleware_without_a_worker(serve, settings):
    """What such a middleware raises comes to Django as it does from a thread."""
    application = serve(pong, "django.middleware.common.CommonMiddleware")
    settings.ALLOWED_HOSTS = ["elsewhere.example"]
    assert (await get(application)).startswith("400 ")
    assert stats().threads == 0


@pytest.mark.parametrize(
    ("names", "in_sessions"), [([f"{__name__}.Subclass"], False), (OF_HEADERS, True)]
)
async def test_middleware_that_may_ask_takes_a_worker(serve, settings, names, in_sessions):
    """A subclass runs on a worker, and so does what may ask for a session."""
    settings.CSRF_USE_SESSIONS = in_sessions
    assert (await get(serve(pong, *names))).startswith("200 ")
    assert stats().threads == 1


async def test_method_of_django_that_was_replaced_takes_a_worker(serve, monkeypatch):
    """A method that a project puts in the place of Django's is a call like any other."""
    seen = []
    monkeypatch.setattr(
        SecurityMiddleware, "process_request", lambda self, request: seen.append(thread_name())
    )
    assert (await get(serve(pong, OF_HEADERS[1]))).startswith("200 ")
    assert seen == ["ormbridge-worker-1"]


async def test_body_is_read_on_a_worker(serve):
    """Where the check against forgery may read the body, it runs on a worker."""
    seen = []

    class Body(dict):
        def get(self, *key):
            seen.append(thread_name())
            return ""

    application = serve(pong, "django.middleware.csrf.CsrfViewMiddleware")
    with mock.patch("django.core.handlers.asgi.ASGIRequest.POST", Body()):
        scope = {"type": "http", "method": "POST", "path": "/", **SERVER}
        cookie = b"csrftoken=" + b"a" * 32
        scope["headers"] = [(b"cookie", cookie)]
        client = ApplicationCommunicator(application, scope)
        await client.send_input({"type": "http.request"})
        assert (await client.receive_output(GUARD))["status"] == 403
        await client.wait(GUARD)
    assert seen == ["ormbridge-worker-1"]
