"""What tools that trace calls put around them takes no thread. See tests/instrumentation."""

import asyncio
import functools
from contextvars import ContextVar
from functools import partial
from unittest import mock

import pytest
from asgiref.sync import SyncToAsync, async_to_sync, sync_to_async
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, connection, reset_queries
from django.dispatch import Signal, dispatcher
from django.http import HttpResponse

from ormbridge import stats
from ormbridge.asgi.sync_to_async import on_route
from tests.core.support import thread_name
from tests.support.http import get, pong
from tests.support.wrapped import hand_on_by_keyword


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
    handled = hand_on_by_keyword(monkeypatch)
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
