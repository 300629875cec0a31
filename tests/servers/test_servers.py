"""The one line, seen by clients of real servers and by PostgreSQL."""

import asyncio
import contextlib
import json
from socket import create_connection

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.core.gate import GUARD
from tests.servers.client import get, opened, read_head
from tests.servers.conftest import BOUND
from tests.servers.harness import COMMANDS, Sampler, Server, until


def socket(server, name):
    return connect(f"ws://127.0.0.1:{server.port}/sockets/{name}", open_timeout=GUARD)


async def ask(server, name, query):
    """Open a socket, send it a query and return the answer."""
    async with asyncio.timeout(GUARD), socket(server, name) as client:
        await client.send(query)
        return await client.recv()


async def together(*awaitables):
    """Return what they all return, within the guard."""
    async with asyncio.timeout(GUARD):
        return await asyncio.gather(*awaitables)


async def test_views_answer(server):
    """Async and sync views answer, and so does one without a query."""
    for path in ["async", "sync"]:
        assert await get(server.port, f"/{path}") == (200, '{"group": "first"}')
    assert await get(server.port, "/alive") == (200, "alive")


async def test_views_that_raise_are_answered(server):
    """A view that raises is a 500, the next request is served as if nothing had been."""
    for path in ["async/raise", "sync/raise", "database/error"]:
        assert (await get(server.port, f"/{path}")).status == 500
    assert await get(server.port, "/sync") == (200, '{"group": "first"}')


async def test_sockets_answer(server):
    """A sync, an async and a JSON consumer, as Channels has them, query and answer."""
    assert await ask(server, "sync", "count") == "count"
    assert await ask(server, "async", "count") == "count"
    assert json.loads(await ask(server, "json", '{"query": "count"}')) == {"query": "count"}


# Of each server: the code of the socket whose consumer raises (None where it ends without one), and
# what the log says above the traceback.
ERRORS = {
    "daphne": (1011, "Exception inside application: "),
    "uvicorn-asyncio": (None, "ERROR:    Exception in ASGI application"),
    "uvicorn-uvloop": (None, "ERROR:    Exception in ASGI application"),
    "hypercorn": (1011, "[ERROR] Error in ASGI Framework"),
    "granian": (1005, "[ERROR] Application callable raised an exception"),
    "gunicorn": (1011, "[ERROR] Error in WebSocket ASGI application"),
    "gunicorn-uvicorn": (None, "[ERROR] Exception in ASGI application"),
}


async def test_socket_whose_consumer_raises(server):
    """Each server closes it in its own way, and logs the error; the next socket is served."""
    code, line = ERRORS[server.kind]
    with pytest.raises(ConnectionClosed) as closed:
        await ask(server, "sync", "no such query")
    assert (closed.value.rcvd and closed.value.rcvd.code) == code
    await until(lambda: line in server.output() and "'no such query'" in server.output())
    assert await ask(server, "sync", "count") == "count"


async def test_socket_that_fails_before_it_is_accepted(server):
    """The client reads a status: 500 of most servers."""
    with pytest.raises(InvalidStatus) as refused:
        await ask(server, "no-such-route", "count")
    assert refused.value.response.status_code == (403 if server.kind == "granian" else 500)


async def test_requests_and_sockets_share_the_bound(server):
    """Under requests and sockets of all kinds PostgreSQL never sees more than MAX_THREADS."""
    with Sampler(server) as sampler:
        answers = await together(
            *[get(server.port, "/async/sleep") for _ in range(10)],
            *[get(server.port, "/sync/sleep") for _ in range(10)],
            *[ask(server, "sync", "sleep") for _ in range(10)],
            *[ask(server, "async", "sleep") for _ in range(10)],
        )
    assert answers == [(200, "slept")] * 20 + ["sleep"] * 20
    assert sampler.most == BOUND
    assert sampler.most_sleeping == BOUND


async def test_twenty_sync_sockets_query_in_parallel(server, outside):
    """Twenty sockets on an unmodified sync consumer query MAX_THREADS at a time."""
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(socket(server, "sync")) for _ in range(20)]
        with outside.holding():
            for client in sockets:
                await client.send("wait")
            await until(lambda: outside.waiting() == BOUND)
            assert outside.sessions(server) == BOUND
        assert await together(*[client.recv() for client in sockets]) == ["wait"] * 20


async def test_twenty_sync_sockets_query_one_after_the_other_without_the_line(database):
    """Without the line the same sockets query one after the other."""
    with Server("uvicorn-asyncio", database, bridge=False) as server, Sampler(server) as sampler:
        answers = await together(*[ask(server, "sync", "sleep") for _ in range(20)])
    assert answers == ["sleep"] * 20
    assert sampler.most_sleeping == 1


async def test_released_streams_hold_no_connection(server, outside):
    """While 200 streams that called release() are open, every worker is free for others."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin():
            reader = await stack.enter_async_context(opened(server.port, "/events"))
            status, _ = await read_head(reader)
            return status, b"data: " in await reader.readuntil(b"\n\n")

        assert await together(*[begin() for _ in range(200)]) == [(200, True)] * 200
        with outside.holding():
            requests = together(*[get(server.port, "/async/wait") for _ in range(BOUND)])
            requests = asyncio.ensure_future(requests)
            await until(lambda: outside.waiting() == BOUND)
            assert outside.sessions(server) == BOUND
        assert await requests == [(200, "waited")] * BOUND
    # The clients have gone in the middle of their streams.
    assert await get(server.port, "/async") == (200, '{"group": "first"}')


async def test_background_task_outlives_its_request(server, outside):
    """A task goes on after the request that began it was answered, queries and all."""
    name = f"{server.kind}-background"
    with outside.holding():
        assert await get(server.port, f"/background/{name}") == (200, "begun")
        await until(lambda: outside.waiting() == 1)
        assert not outside.has_group(name)
    await until(lambda: outside.has_group(f"{name}, done"))


@pytest.fixture(scope="module", params=COMMANDS)
def small_server(request, database):
    """Return each of the servers with one worker, for which others wait but a moment."""
    with Server(request.param, database, bridge=True, MAX_THREADS=1, TIMEOUT=0.2) as server:
        yield server


async def test_exhausted_pool_is_a_503(small_server, outside):
    """A request that waits longer than TIMEOUT for a worker is a 503; then all is well again."""
    with outside.holding():
        first = asyncio.ensure_future(get(small_server.port, "/sync/wait"))
        await until(lambda: outside.waiting() == 1)
        for path in ["sync", "async"]:
            assert (await get(small_server.port, f"/{path}")).status == 503
        # What asks nothing of the pool is answered all the time.
        assert await get(small_server.port, "/alive") == (200, "alive")
    assert await first == (200, "waited")
    for path in ["async", "sync"]:
        assert await get(small_server.port, f"/{path}") == (200, '{"group": "first"}')


async def test_exhausted_pool_closes_the_socket(small_server, outside):
    """A socket whose consumer waits longer than TIMEOUT is closed; the next one is served."""
    with outside.holding():
        first = asyncio.ensure_future(get(small_server.port, "/sync/wait"))
        await until(lambda: outside.waiting() == 1)
        with pytest.raises(ConnectionClosed):
            await ask(small_server, "async", "count")
    assert await first == (200, "waited")
    assert await ask(small_server, "async", "count") == "count"


@pytest.mark.parametrize("kind", COMMANDS)
async def test_client_that_reads_nothing(database, kind):
    """A response waits for its client; Daphne takes it all into memory."""
    with Server(kind, database, bridge=True) as server:
        with create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET /export HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            progress, answers_alike = "0", 0
            async with asyncio.timeout(2 * GUARD):
                while progress != "512" and answers_alike < 100:
                    before, progress = progress, (await get(server.port, "/export/progress")).body
                    moves = progress == "0" or progress != before
                    answers_alike = 0 if moves else answers_alike + 1
            assert (progress == "512") is (kind == "daphne")


@pytest.mark.parametrize("kind", ["gunicorn", "gunicorn-uvicorn"])
async def test_pool_from_before_the_fork(database, outside, kind):
    """With --preload, a pool that was used before the fork stays with gunicorn's main process."""
    options = {"options": "--preload", "variables": {"SERVERS_CALLS": "1"}}
    with Server(kind, database, bridge=True, MAX_THREADS=BOUND, **options) as server:
        assert outside.sessions(server) == 1
        assert (
            await together(*[get(server.port, "/async/sleep") for _ in range(10)])
            == [(200, "slept")] * 10
        )
        assert outside.sessions(server) == 1 + BOUND
