"""The stack of examples/deployment, from the system's packages: many processes as one site."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
import redis
from channels_redis.core import RedisChannelLayer
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from examples.deployment.stack import parts
from examples.deployment.stack.ports import HERE, free_ports
from examples.deployment.stack.running import Stack
from tests.core.gate import GUARD
from tests.servers.client import CutError, Response, get, read_body, read_head
from tests.servers.harness import ROOT, until

THREADS = 15
"""Threads of a process: two processes have more than PgBouncer has connections to PostgreSQL."""

numbers = itertools.count()


@pytest.fixture(scope="module", params=parts.SERVERS)
def stack(request):
    """Return a running stack with each of the servers in turn, of two processes."""
    with Stack(free_ports(), request.param, 2, THREADS) as stack:
        yield stack


async def post(port, path, body):
    """Send a form with *body* and read all of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        status, headers = await read_head(reader)
        return Response(status, await read_body(reader, headers))
    finally:
        writer.transport.abort()


@contextlib.asynccontextmanager
async def clients(*actions):
    """Have a client repeat each of *actions* until the block ends; yields what they were told."""
    told = Counter()
    ended = False

    async def repeat(action):
        while not ended:
            try:
                told[(await action()).status] += 1
            except CutError:
                told["cut"] += 1

    async with asyncio.TaskGroup() as group:
        for action in actions:
            group.create_task(repeat(action))
        try:
            yield told
        finally:
            ended = True


async def process(stack):
    """Return the id of a process that answers."""
    return json.loads((await get(stack.ports["nginx"], "/process/")).body)["pid"]


async def all_answer(stack, pids):
    """Wait until each of *pids* has answered a request."""
    async with asyncio.timeout(GUARD):
        answered = set()
        while not pids <= answered:
            answered.add(await process(stack))


async def renewed(stack):
    """Have all processes replaced, and wait until the new ones answer and the old ones are gone."""
    old = set(stack.servers())
    stack.renew()
    await until(lambda: len(new := set(stack.servers())) == stack.count and not new & old)
    await all_answer(stack, set(stack.servers()))


async def test_all_processes_answer(stack):
    """Requests come to each of the processes."""
    assert len(stack.servers()) == 2
    await all_answer(stack, set(stack.servers()))


async def test_what_one_says_all_hear(stack):
    """A message reaches the sockets of the room in all processes, through Redis."""
    url = f"ws://127.0.0.1:{stack.ports['nginx']}/ws/tea/"
    async with contextlib.AsyncExitStack() as opened, asyncio.timeout(GUARD):
        sockets, pids = [], set()
        while pids != set(stack.servers()):
            sockets.append(await opened.enter_async_context(connect(url)))
            pids.add(json.loads(await sockets[-1].recv())["pid"])
        await sockets[0].send('{"say": "hello"}')
        heard = [json.loads(await each.recv())["text"] for each in sockets]
    assert heard == ["hello"] * len(sockets)


async def test_request_goes_through_pgbouncer(stack):
    """PgBouncer counts the query that a request makes."""

    def counted():
        rows = stack.ask("pgbouncer", "SHOW STATS", part="pgbouncer")
        return sum(row["total_query_count"] for row in rows if row["database"] == "mysite")

    before = counted()
    assert (await get(stack.ports["nginx"], "/")).status == 200
    await until(lambda: counted() > before)


async def test_connections(stack):
    """PgBouncer has a connection for each thread, PostgreSQL no more than the pool is large."""
    port = stack.ports["nginx"]
    seen = []

    def sample():
        seen.append(stack.connections())
        return seen[-1] == {"pgbouncer": 2 * THREADS, "postgresql": 20}

    async with clients(*[lambda: get(port, "/slow/?seconds=0.2")] * 60) as told:
        await until(sample)
        for _ in range(5):
            sample()
    assert set(told) == {200}
    assert max(each["pgbouncer"] for each in seen) == 2 * THREADS
    assert max(each["postgresql"] for each in seen) == 20


async def test_rolling_restart(stack):
    """While all processes are replaced no GET fails, and open sockets are closed."""
    port = stack.ports["nginx"]
    url = f"ws://127.0.0.1:{port}/ws/tea/"
    # A process that stops may close a connection whose request it has not read yet. nginx asks
    # again then, but repeats no POST: https://github.com/Kludex/uvicorn/issues/2757
    async with connect(url) as client:
        await client.recv()
        async with clients(*[lambda: get(port, "/slow/?seconds=0.01")] * 8) as told:
            await renewed(stack)
            before = told.total()
            await until(lambda: told.total() > before)
        with pytest.raises(ConnectionClosed) as raised:
            await asyncio.wait_for(client.recv(), GUARD)
    assert set(told) == {200}
    told_why = raised.value.rcvd and raised.value.rcvd.code
    assert told_why == {"gunicorn": CloseCode.SERVICE_RESTART, "granian": None}[stack.server]
    async with connect(url) as client:
        assert json.loads(await client.recv())["pid"] in stack.servers()


async def test_switching_over(stack):
    """With a new server on another port, nginx switched over, and the old one ended, none fails."""
    port, old = stack.ports["nginx"], set(stack.servers())

    def read():
        return get(port, "/slow/?seconds=0.01")

    def write():
        return post(port, "/users/", f"name=user{next(numbers)}")

    async with clients(*[read] * 4, *[write] * 4) as told:
        await asyncio.to_thread(stack.switch)
        before = told.total()
        await until(lambda: told.total() > before)
    assert set(told) == {200, 201}
    assert not old & set(stack.servers())


@pytest.fixture
def place():
    """Return a directory that PostgreSQL's user can get to, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        path.chmod(0o755)
        yield path


def test_leaves_nothing_behind(place):
    """The session says what it found to be running, and Ctrl-C ends all of it."""
    command = [sys.executable, "-m", "examples.deployment.stack", "--free-ports"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(place), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output = ""
        while "Ctrl-C ends it" not in output:
            line = process.stdout.readline()
            assert line, output
            output += line
        ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+) ", output)]
        found = re.findall(r"^(\w+) \d+\.\d+", output, re.MULTILINE)
        assert found == ["PostgreSQL", "PgBouncer", "Redis", "gunicorn", "nginx"]
        assert "2 processes, 10 threads each, with uvicorn" in output
        assert all(listening(port) for port in ports)
        (made,) = place.iterdir()
        assert started_in(made)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(GUARD) == 0
        output += process.stdout.read()
        assert not any(listening(port) for port in ports)
        assert not started_in(made)
        assert list(place.iterdir()) == []
        # What the page shows.
        shown = (HERE / "session.txt").read_text(encoding="utf-8")
        assert shape(output) == shape(shown)
    finally:
        with process, contextlib.suppress(ProcessLookupError):
            process.terminate()


def shape(text):
    """Return *text* without what differs from run to run: versions, ports, ids."""
    return re.sub(r"[\d.]*\d", "0", re.sub(r" +", " ", text))


def listening(port):
    """Say whether something listens on *port*."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=GUARD).close()
    except OSError:
        return False
    return True


def started_in(place):
    """Return the processes whose directory is *place*, or that were told of it."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(place) in str((each / "cwd").readlink()) + (each / "cmdline").read_text():
                found.append(each.name)
    return found


async def test_redis_client_waits_without_a_limit(stack, monkeypatch):
    """A limit of redis-py ends the wait for a message, and with it every socket: it is off."""
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{stack.ports['redis']}")
    monkeypatch.setenv("SECRET_KEY", "of a test")
    settings = runpy.run_path(str(HERE / "mysite" / "settings.py"))
    (host,) = settings["CHANNEL_LAYERS"]["default"]["CONFIG"]["hosts"]
    assert host["socket_timeout"] is None
    layer = RedisChannelLayer(hosts=[{**host, "socket_timeout": 0.1}])
    try:
        with pytest.raises(redis.exceptions.TimeoutError, match="Timeout reading from"):
            await asyncio.wait_for(layer.receive(await layer.new_channel()), GUARD)
    finally:
        await layer.close_pools()
    assert redis.Redis().get_connection_kwargs()["socket_timeout"] == layer.brpop_timeout == 5
