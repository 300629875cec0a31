"""Streams in requests and sockets."""

import asyncio

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

from ormbridge import (
    BridgeMiddleware,
    LeaseClosed,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    release,
    stats,
    stream,
)
from tests.core.gate import GUARD
from tests.core.support import no_worker_is_leased, set_timeout, thread_name, until
from tests.support.applications import serve
from tests.support.http import connect, disconnect, get, request, say
from tests.support.rows import IN_ORDER, NAMES, ROWS

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def site(settings):
    """Return a function that serves *view* under the middleware."""

    def serve_view(view, *middleware):
        settings.ROOT_URLCONF = (path("", view),)
        settings.MIDDLEWARE = [f"{__name__}.{each.__name__}" for each in middleware]
        return BridgeMiddleware(ASGIHandler())

    return serve_view


def sync_middleware(get_response):
    return lambda request: get_response(request)


@pytest.mark.parametrize("middleware", [[], [sync_middleware]])
async def test_in_a_request(watch, site, middleware):
    """A view's streaming response reads on the worker of its request."""
    workers = []

    async def view(request):
        workers.append(await sync_to_async(thread_name)())

        async def lines():
            async for row in stream(watch.rows(), 3):
                workers.append(await sync_to_async(thread_name)())
                yield f"{row.username},"

        return StreamingHttpResponse(lines())

    assert await get(site(view, *middleware)) == f"200 {','.join(NAMES)},"
    assert set(workers) == set(watch.opened) == set(watch.closed) == {"ormbridge-worker-1"}
    await no_worker_is_leased()


async def test_task_that_outlives_its_request_in_a_stream(watch, site, pool_settings):
    """Its calls go to the worker of its stream: it has that one, and there may be no other."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)
    begun, ended, tasks = asyncio.Event(), asyncio.Event(), []

    async def outlive():
        rows, called = [], []
        async for row in stream(watch.rows(), 3):
            rows.append(row.username)
            begun.set()
            await ended.wait()
            called.append(await database_sync_to_async(thread_name)())
        return rows, set(called)

    async def view(request):
        await sync_to_async(thread_name)()  # the worker is the request's
        tasks.append(asyncio.create_task(outlive()))
        await begun.wait()
        return HttpResponse("begun")

    assert await get(site(view)) == "200 begun"
    ended.set()
    assert await asyncio.wait_for(tasks[0], GUARD / 2) == (NAMES, {"ormbridge-worker-1"})
    await no_worker_is_leased()


async def test_response_from_a_stream(watch, site):
    """A stream of strings is itself what a streaming response takes."""

    def view(request):
        return StreamingHttpResponse(stream(IN_ORDER.values_list("username", flat=True), 3))

    assert await get(site(view)) == f"200 {''.join(NAMES)}"
    await no_worker_is_leased()


@pytest.mark.parametrize("middleware", [[], [sync_middleware]])
async def test_client_that_leaves(watch, site, middleware):
    """When the client leaves a streaming response, the cursor is closed and the worker is free."""

    async def view(request):
        async def lines():
            async for row in stream(watch.rows(), 2):
                yield row.username
                await asyncio.Event().wait()

        return StreamingHttpResponse(lines())

    client = request(site(view, *middleware))
    await client.send_input({"type": "http.request"})
    await client.receive_output(GUARD)
    await client.receive_output(GUARD)
    await client.send_input({"type": "http.disconnect"})
    await client.wait(GUARD)
    await no_worker_is_leased()
    assert watch.closed == ["ormbridge-worker-1"]


async def test_view_that_streams_below_sync_middleware(watch, site):
    """An async view below sync middleware streams on the thread of the frame."""
    threads = []

    async def view(request):
        threads.extend([await sync_to_async(thread_name)() async for _ in stream(watch.rows(), 2)])
        iterator = aiter(stream(watch.rows(), 2))
        await anext(iterator)

        async def lines():
            try:
                async for row in iterator:
                    yield row.username
            except LeaseClosed as error:
                yield str(error)

        return StreamingHttpResponse(lines())

    body = await get(site(view, sync_middleware))
    assert body.endswith("frame has ended; iterate on it to its end there [frame-ended]")
    assert set(threads) == set(watch.opened) == set(watch.closed) == {"ormbridge-worker-1"}
    await no_worker_is_leased()


async def test_in_a_socket(watch):
    """A socket keeps its worker while it streams, and calls in the body run there."""

    async def answer(text):
        threads, leased = set(), set()
        async for _ in stream(watch.rows(), 2):
            leased.add(len(stats().holders))
            threads.add(await sync_to_async(thread_name)())
            if text == "break" and len(leased) == 1 and threads:
                break
        await no_worker_is_leased()
        return sorted(threads)

    socket = await connect(serve(answer))
    assert await say(socket, "all") == "['ormbridge-worker-1']"
    assert await say(socket, "break") == "['ormbridge-worker-1']"
    await disconnect(socket)
    assert watch.closed == ["ormbridge-worker-1"] * 2


async def test_block_in_the_body_needs_no_second_worker(watch, pool_settings):
    """Not even in a socket where the stream of another task took the worker."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)

    async def first():
        async for _ in stream(watch.rows(), 2):
            begun.set()
            await go_on.wait()

    async def second():
        await begun.wait()
        async for _ in stream(watch.rows(), 2):
            async with atomic():
                await User.objects.acount()
            go_on.set()
        return "done"

    async def answer(text):
        return (await asyncio.gather(first(), second()))[1]

    begun, go_on = asyncio.Event(), asyncio.Event()
    socket = await connect(serve(answer))
    assert await say(socket, "both") == "done"
    await disconnect(socket)


async def test_socket_that_closes(watch):
    """What a socket that closes has left open is closed on its worker; who still has it is told."""
    kept = []

    async def answer(text):
        kept.append(aiter(stream(watch.rows(), 1)))
        await anext(kept[0])
        await until(lambda: watch.fetched == [0, 1])

    socket = await connect(serve(answer))
    await say(socket)
    await disconnect(socket)
    await no_worker_is_leased()
    assert watch.closed == ["ormbridge-worker-1"]
    assert (await anext(kept[0])).username == NAMES[1]  # read ahead
    with pytest.raises(LeaseClosed, match="is closed: the request, connection or"):
        await anext(kept[0])


async def test_task_that_outlives_its_request(watch):
    """A task that outlives its socket goes on with its stream, on the same worker."""
    go_on = asyncio.Event()
    tasks = []

    async def read():
        names = []
        async for row in stream(watch.rows(), 2):
            names.append(row.username)
            await go_on.wait()
        return names

    async def answer(text):
        tasks.append(asyncio.create_task(read()))

    socket = await connect(serve(answer))
    await say(socket)
    await until(lambda: watch.fetched)
    await disconnect(socket)
    go_on.set()
    assert await tasks[0] == NAMES
    assert watch.opened == watch.closed
    await no_worker_is_leased()


async def test_release_leaves_a_stream_alone(watch):
    """``release()`` in the body does not take the worker from the stream."""

    async def answer(text):
        count = 0
        async for _ in stream(watch.rows(), 2):
            await release()
            count += 1
        return count

    socket = await connect(serve(answer))
    assert await say(socket) == str(ROWS)
    await disconnect(socket)
    assert watch.opened == watch.closed == ["ormbridge-worker-1"]


async def test_fetch_that_waits_too_long(watch, gate, pool_settings):
    """A stream that gets no worker in time raises ``PoolTimeout``, which names it."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e-3)
    running = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    with pytest.raises(PoolTimeout, match="for a worker: 1 of 1 leased"):
        async for _ in stream(watch.rows()):
            pass
    set_timeout(GUARD)
    gate.open.set()
    await running
    async for _ in stream(watch.rows(), 2):
        assert "stream of auth.User" in str(stats().holders)
        break
    await no_worker_is_leased()


@pytest.mark.parametrize("way", [asyncio.gather, asyncio.create_task])
async def test_stream_begun_after_its_request(watch, site, pool_settings, way):
    """In the body of a stream that a task begins then, calls of its own tasks go along, too."""
    pool_settings(MAX_THREADS=1, TIMEOUT=2)
    ended, tasks, seen = asyncio.Event(), [], []

    async def outlive():
        await ended.wait()
        async for _ in stream(watch.rows(), 10):
            bridged = database_sync_to_async(thread_name)()
            await way(bridged if way is asyncio.gather else asyncio.wait_for(bridged, GUARD))
            seen.append(await way(User.objects.acount()))

    async def view(request):
        await sync_to_async(thread_name)()
        tasks.append(asyncio.create_task(outlive()))
        return HttpResponse("begun")

    assert await get(site(view)) == "200 begun"
    ended.set()
    await tasks[0]
    assert seen in ([10] * len(NAMES), [[10]] * len(NAMES))
    await no_worker_is_leased()
