"""A request that gets no worker in time: a 503, and the error says who holds the workers."""

import asyncio
import re
import time
from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from django.http import HttpResponse

from ormbridge import (
    BridgeMiddleware,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
    stats,
)
from ormbridge.core.mailbox import BATCH
from ormbridge.core.process import default_pool
from tests.core.gate import GUARD
from tests.core.support import thread_name
from tests.support.blocks import beside
from tests.support.http import get, request


async def test_exhausted_pool_is_a_503(serve, gate, pool_settings, caplog):
    """A view that gets no worker in time ends in a 503, and the log says who holds the workers."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e-3)

    async def view(request):
        await sync_to_async(thread_name)()

    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    assert (await get(serve(view))).startswith("503")
    assert "1 of 1 leased, 0 more calls waiting; held longest: ormbridge-worker-1 by" in caplog.text
    gate.open.set()
    await holder


@pytest.mark.parametrize("block", [atomic, pinned])
@pytest.mark.parametrize("lease", ["auto", "call"])
async def test_block_without_a_worker_is_a_503(serve, gate, pool_settings, block, lease):
    """So it is where a block gets none, although Django has one for its error page."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e-3, HTTP_LEASE=lease)

    async def view(request):
        try:
            async with block():
                await sync_to_async(thread_name)()
        finally:
            object.__setattr__(default_pool().settings, "timeout", GUARD)
            gate.open.set()

    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    assert (await get(serve(view))).startswith("503")
    await holder


async def test_pool_timeout_names_the_request_that_holds(serve, pool_settings):
    """A PoolTimeout names the request that holds the worker, and that it is idle."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e-3)

    async def client(hold):
        async def view(request):
            await sync_to_async(thread_name)()
            await hold()
            return HttpResponse()

        await get(serve(view))

    async with beside(client):
        holder = "held longest: ormbridge-worker-1 by GET /, idle for"
        with pytest.raises(PoolTimeout, match=holder):
            await database_sync_to_async(thread_name)()


async def test_application_that_raises_pool_timeout_is_a_503(gate, pool_settings, caplog):
    """An application that makes no error page of a PoolTimeout is answered for: a plain 503."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e-3)

    async def application(scope, receive, send):
        await sync_to_async(thread_name)()

    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    assert await get(BridgeMiddleware(application)) == "503 Service Unavailable"
    assert re.match(r"GET /: waited \d+\.\d s for a worker: 1 of 1 leased", caplog.messages[0])
    gate.open.set()
    await holder


async def test_pool_timeout_after_the_response_started_is_raised(gate, pool_settings):
    """Once the response has started, a PoolTimeout goes on to the server."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e-3)

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await sync_to_async(thread_name)()

    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    client = request(BridgeMiddleware(application))
    assert (await client.receive_output(GUARD))["status"] == 200
    with pytest.raises(PoolTimeout):
        await client.wait(GUARD)
    gate.open.set()
    await holder


async def test_other_errors_keep_their_status(serve):
    """A 500 that no PoolTimeout caused stays a 500."""

    async def view(request):
        raise ValueError

    assert (await get(serve(view))).startswith("500")


async def test_after_a_pool_timeout_a_request_does_not_wait_again(serve, gate, pool_settings):
    """What Django runs after a PoolTimeout fails at once where there is still no worker."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e-3)
    caught = []

    async def view(request):
        for timeout in (1e-3, GUARD):
            pool = default_pool()
            object.__setattr__(pool.settings, "timeout", timeout)
            try:
                await sync_to_async(thread_name)()
            except PoolTimeout:
                caught.append(timeout)
        return HttpResponse("done")

    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    assert await get(serve(view)) == "200 done"
    assert caught == [1e-3, GUARD]
    gate.open.set()
    await holder


async def test_pool_timeout_of_thread_sensitive_false_is_a_503(serve, gate, pool_settings):
    """A PoolTimeout is a 503 however the call was made."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e-3)

    async def view(request):
        await database_sync_to_async(thread_name, thread_sensitive=False)()

    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    assert (await get(serve(view))).startswith("503")
    gate.open.set()
    await holder


@pytest.mark.parametrize("kind", ["calls", "requests", "one request", "turns"])
async def test_loop_turns_while_many_time_out(kind, gate, pool_settings, monkeypatch):
    """Of calls that time out at one time, no more than a batch fails in a turn of the loop."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)
    loop, clock = asyncio.get_running_loop(), time.monotonic
    made = most = failed = before = 0

    def turn():
        nonlocal most, before, watching
        most, before = max(most, failed - before), failed
        watching = loop.call_soon(turn)

    async def fail(*args):
        nonlocal made, failed
        made += 1
        if made == 3 * BATCH:  # the time of all of them is up, at once
            loop.call_soon(monkeypatch.setattr, "time.monotonic", lambda: clock() + 2 * GUARD)
        with pytest.raises(PoolTimeout):
            await database_sync_to_async(len)("")
        failed += 1

    async def gathered(*args):
        await asyncio.gather(*[fail() for _ in range(3 * BATCH)])

    async def behind_another(*args):
        running = asyncio.create_task(database_sync_to_async(gate)())
        await gate.entered()
        await gathered()
        gate.open.set()
        await running

    async def request(application):
        scope = {"type": "http", "method": "GET", "path": "/"}
        await BridgeMiddleware(application)(scope, mock.AsyncMock(), mock.AsyncMock())

    if kind != "turns":
        holder = asyncio.create_task(database_sync_to_async(gate)())
        await gate.entered()
    watching = loop.call_soon(turn)
    match kind:
        case "calls":
            await gathered()
        case "requests":
            await asyncio.gather(*[request(fail) for _ in range(3 * BATCH)])
        case "one request":
            await request(gathered)
        case "turns":
            await request(behind_another)
    watching.cancel()
    if kind != "turns":
        gate.open.set()
        await holder
    assert failed == 3 * BATCH
    assert 0 < most <= BATCH
    assert stats().waiting == 0
