"""The page ``guide/observing``: its examples, and the claims it makes."""

import asyncio
import json
import logging
import threading
import time

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse
from django.urls import path

from ormbridge import BridgeMiddleware, PoolTimeout, database_sync_to_async, stats
from tests.core.gate import GUARD
from tests.core.support import until
from tests.support.examples import example_source
from tests.support.http import connect, disconnect, get

# The examples, in the order of the page.


async def test_json(load_example, settings, gate, pool_settings, recorded):
    """A view serves the whole snapshot as JSON."""
    pool_settings(MAX_THREADS=1)
    settings.ROOT_URLCONF = load_example("observing/pool_view")
    application = BridgeMiddleware(ASGIHandler())
    settings.ROOT_URLCONF.urlpatterns.append(path("report/", shown_as("report", gate)))
    requests = [asyncio.create_task(get(application, "/report/")) for _ in range(3)]
    await gate.entered()
    answer = await get(application, "/pool/")
    gate.open.set()
    await asyncio.gather(*requests)
    recorded("observing/pool_view", answer)


def shown_as(name, gate):
    """Return a synchronous view that waits at *gate*, by a name that a reader may have."""

    def view(request):
        return HttpResponse(gate())

    view.__module__, view.__qualname__ = "reports.views", name
    return view


async def test_live(load_example, pool_settings, recorded):
    """A consumer sends the snapshot over a WebSocket, and sends it again."""
    pool_settings(MAX_THREADS=10)
    consumer = load_example("observing/live").PoolConsumer
    socket = await connect(BridgeMiddleware(consumer.as_asgi()))
    first = json.loads((await socket.receive_output(GUARD))["text"])
    second = json.loads((await socket.receive_output(GUARD))["text"])
    await disconnect(socket)
    assert first == second
    recorded("observing/live", json.dumps(first))


def test_wait(run_script, recorded):
    """``stats()`` tells the time that calls waited from the time that they ran."""
    recorded("observing/wait", run_script(example_source("observing/wait")))


async def test_log(load_example, settings, gate, pool_settings, caplog, recorded):
    """A middleware logs when calls have waited for a worker, and only then."""
    pool_settings(MAX_THREADS=1)
    module = load_example("observing/log")
    middleware = module.log_waits(answer_at_once)
    await middleware(None)
    assert caplog.messages == []
    calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(3)]
    await gate.entered()
    await middleware(None)
    await middleware(None)
    gate.open.set()
    await asyncio.gather(*calls)
    lines = [f"{each.levelname} {each.getMessage()}" for each in caplog.records]
    assert len(lines) == 1
    recorded("observing/log", "\n".join(lines))


async def answer_at_once(request):
    return HttpResponse()


def test_holders(run_script, recorded):
    """``stats().holders`` names the thread, the function and the seconds."""
    recorded("observing/holders", run_script(example_source("observing/holders")))


def test_logging(run_script, recorded):
    """The logger ``ormbridge`` warns of a connection that was thrown away."""
    recorded("observing/log_settings", run_script(example_source("observing/log_settings")))


# Field by field.


async def test_fields_while_calls_wait(gate, pool_settings):
    """One of two workers' calls runs on each, and a third call waits."""
    pool_settings(MAX_THREADS=2)
    calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(3)]
    await gate.entered(2)
    seen = stats()
    assert (seen.max_threads, seen.threads, seen.idle, seen.waiting) == (2, 2, 0, 1)
    assert (seen.calls, seen.queued, seen.timeouts, seen.discarded) == (0, 1, 0, 0)
    gate.open.set()
    await asyncio.gather(*calls)
    seen = stats()
    assert (seen.threads, seen.idle, seen.waiting) == (2, 2, 0)
    assert (seen.calls, seen.queued, seen.holders) == (3, 1, ())


async def test_wait_and_run_are_counted(gate, pool_settings):
    """Seconds without a worker count as wait, seconds with one as run."""
    pool_settings(MAX_THREADS=1)
    first = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    second = asyncio.create_task(database_sync_to_async(int)())
    await asyncio.sleep(0)  # it waits
    begun = time.monotonic()
    threading.Event().wait(0.1)
    waited = time.monotonic() - begun
    gate.open.set()
    await asyncio.gather(first, second)
    assert stats().wait_seconds >= waited  # of the second
    assert stats().run_seconds >= waited  # of the first


async def test_held_request_counts_as_running(settings, pool_settings):
    """The time between two calls of a request that holds its worker counts as run."""
    pool_settings(MAX_THREADS=1)

    async def view(request):
        await database_sync_to_async(int)()
        await asyncio.sleep(0.1)
        await database_sync_to_async(int)()
        return HttpResponse()

    settings.ROOT_URLCONF = (path("", view),)
    await get(BridgeMiddleware(ASGIHandler()))
    await database_sync_to_async(int)()  # when it has the worker, the request has given it back
    assert stats().run_seconds >= 0.1


async def test_turn_in_a_request_is_no_wait(settings, gate):
    """A call that waits until another one of its request has run is not among those that wait."""

    async def view(request):
        calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(2)]
        await gate.entered()
        seen = stats()
        gate.open.set()
        await asyncio.gather(*calls)
        return HttpResponse(f"{seen.waiting} {seen.queued} {len(seen.holders)}")

    settings.ROOT_URLCONF = (path("", view),)
    assert await get(BridgeMiddleware(ASGIHandler())) == "200 0 0 1"


async def test_timeouts_are_counted(gate, pool_settings):
    """A call that failed with ``PoolTimeout`` is counted."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.1)
    held = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    with pytest.raises(PoolTimeout):
        await database_sync_to_async(int)()
    assert stats().timeouts == 1
    gate.open.set()
    await held


async def test_request_is_named(settings):
    """A request that holds a worker between its calls is named by method and path."""

    async def view(request):
        await database_sync_to_async(int)()
        ((thread, what, _),) = stats().holders
        return HttpResponse(f"{thread}: {what}")

    settings.ROOT_URLCONF = (path("report/", view),)
    answer = await get(BridgeMiddleware(ASGIHandler()), "/report/")
    assert answer == "200 ormbridge-worker-1: GET /report/, idle"


async def test_call_of_a_request_is_named(settings, gate):
    """A request whose call runs is named together with the function."""

    async def view(request):
        return HttpResponse(await database_sync_to_async(get_holder)())

    settings.ROOT_URLCONF = (path("report/", view),)
    answer = await get(BridgeMiddleware(ASGIHandler()), "/report/")
    assert answer == f"200 GET /report/, in {__name__}.get_holder"


def get_holder():
    """Return what the first holder does."""
    return stats().holders[0][1]


async def test_any_thread_may_ask():
    """``stats()`` answers on every thread."""
    assert await asyncio.to_thread(stats) == stats()


# Logs.


async def test_failure_after_cancellation_is_logged(gate, caplog):
    """What a call raises after its caller gave up is logged at debug level."""
    caplog.set_level(logging.DEBUG, logger="ormbridge")

    def fail():
        gate()
        raise ValueError("nobody waits for this")

    task = asyncio.create_task(database_sync_to_async(fail)())
    await gate.entered()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open.set()
    await until(lambda: caplog.records)
    ((name, level, message),) = caplog.record_tuples
    assert (name, level) == ("ormbridge", logging.DEBUG)
    assert "ValueError('nobody waits for this')" in message
