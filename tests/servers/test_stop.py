"""Servers stop as they do without the line: what runs finishes, nothing hangs, nobody is left."""

import asyncio
import contextlib
import signal
import sys

import pytest
from websockets.asyncio.client import connect

from tests.core.gate import GUARD
from tests.servers.client import CutError, get
from tests.servers.harness import COMMANDS, Server, until

CUTS = {("daphne", signal.SIGTERM), ("daphne", signal.SIGINT), ("gunicorn", signal.SIGINT)}
"""The servers that cut off the requests that run, and by which signal; else they wait for them."""

NO_LIFESPAN = {"daphne"}
"""The servers that do not speak the lifespan protocol."""

WAITS_FOR_SOCKETS = {"gunicorn", "hypercorn"}
"""The servers that do not close open sockets themselves, and stop waiting for them after their
`graceful_timeout`; Hypercorn never from Python 3.12 on: https://github.com/pgjones/hypercorn/issues/308"""

# uvicorn ends by the signal that stopped it.
EXIT_CODES = {
    ("uvicorn-asyncio", signal.SIGTERM): -signal.SIGTERM,
    ("uvicorn-uvloop", signal.SIGTERM): -signal.SIGTERM,
}

BY_UVICORN = {"uvicorn-asyncio", "uvicorn-uvloop", "gunicorn-uvicorn"}
"""The servers whose process ends by the signal itself, as soon as no request is open."""

FORKS = {"granian"} if sys.version_info < (3, 13) else set()
"""The servers whose processes are children of multiprocessing's, which skipped `atexit` before
Python 3.13: https://github.com/python/cpython/issues/83856"""

GRACEFUL_TIMEOUTS = {
    "uvicorn-asyncio": "--timeout-graceful-shutdown 1",
    "granian": "--workers-kill-timeout 1",
    "gunicorn": "--graceful-timeout 1",
    "gunicorn-uvicorn": "--graceful-timeout 1",
}
"""The options that end a server after some seconds whatever runs."""


async def outcome(request):
    """Return the body of the answer, or "cut"."""
    try:
        return (await request).body
    except CutError:
        return "cut"


@pytest.mark.parametrize(
    ("number", "bridge"),
    [(signal.SIGTERM, True), (signal.SIGINT, True), (signal.SIGTERM, False)],
    ids=["SIGTERM", "SIGINT", "SIGTERM-without-the-line"],
)
@pytest.mark.parametrize("kind", COMMANDS)
async def test_stop_by_signal(database, outside, kind, number, bridge):
    """A call that runs when the signal comes finishes; the server ends as it does without us."""
    names = [f"{kind}-{number}-{bridge}-{view}" for view in ("task", "sync", "async", "late")]
    views = ("background", "sync/insert", "async/insert", "async/insert")
    with Server(kind, database, bridge=bridge, MAX_THREADS=3) as server:
        async with contextlib.AsyncExitStack() as stack:
            if kind not in WAITS_FOR_SOCKETS:
                address = f"ws://127.0.0.1:{server.port}/sockets/sync"
                await stack.enter_async_context(connect(address, close_timeout=GUARD))
            with outside.holding():
                requests = []
                for name, view in zip(names, views, strict=True):
                    requests.append(
                        asyncio.ensure_future(outcome(get(server.port, f"/{view}/{name}")))
                    )
                    running = min(len(requests), 3)
                    await until(lambda running=running: outside.waiting() >= running)
                # The last one finds no worker free.
                await until(lambda: f"arrived: {names[3]}\n" in server.output())
                await server.told(number)
            outcomes = await asyncio.wait_for(asyncio.gather(*requests), GUARD)
            exit_code = await server.stopped()
        output = server.output()
    cuts = (kind, number) in CUTS
    assert outcomes == ["begun"] + ["cut" if cuts else "inserted"] * 3, output
    assert exit_code == EXIT_CODES.get((kind, number), 0), output
    assert "Traceback" not in output, output
    # Each of the calls that ran was two statements; the second one came after the signal. The task
    # no server waits for. A call that was cut off while it waited for a worker never runs.
    late = not cuts or not bridge
    assert [outside.has_group(name) for name in names] == [True, True, True, late]
    await until(lambda: outside.sessions(server) == 0)
    told = [line for line in output.splitlines() if line.startswith("lifespan")]
    lifespan = ["lifespan.startup"] if cuts else ["lifespan.startup", "lifespan.shutdown"]
    assert told == ([] if kind in NO_LIFESPAN else lifespan)
    killed = kind in BY_UVICORN and (number == signal.SIGTERM or kind == "gunicorn-uvicorn")
    assert ("\natexit\n" in output) is not (killed or kind in FORKS), output


@pytest.mark.parametrize("bridge", [True, False], ids=["with-the-line", "without"])
@pytest.mark.parametrize("kind", GRACEFUL_TIMEOUTS)
async def test_graceful_timeout(database, outside, kind, bridge):
    """Where the time to stop is limited, the process ends in the middle of a call."""
    name = f"{kind}-limited-{bridge}"
    options = GRACEFUL_TIMEOUTS[kind]
    with Server(kind, database, bridge=bridge, options=options, MAX_THREADS=3) as server:
        with outside.holding():
            request = asyncio.ensure_future(outcome(get(server.port, f"/sync/insert/{name}")))
            await until(lambda: outside.waiting() == 1)
            server.process.send_signal(signal.SIGTERM)
            await server.stopped()
        # uvicorn cancels the request, and may find the time to answer that it failed.
        assert await asyncio.wait_for(request, GUARD) in ("cut", "Internal Server Error")
        await until(lambda: outside.sessions(server) == 0)
        assert not outside.has_group(name)
        assert "\natexit\n" not in server.output()


async def leave_a_task_behind(server, outside, name):
    """Have a request answered whose task makes a call that waits for the lock."""
    assert await get(server.port, f"/background/{name}") == (200, "begun")
    await until(lambda: outside.waiting() == 1)


@pytest.mark.parametrize("kind", COMMANDS)
async def test_call_of_a_task(database, outside, kind):
    """A call of no request finishes, but not under uvicorn: there the process ends at once."""
    name = f"{kind}-task"
    with Server(kind, database, bridge=True, MAX_THREADS=3) as server:
        with outside.holding():
            await leave_a_task_behind(server, outside, name)
            if kind in BY_UVICORN:
                server.process.send_signal(signal.SIGTERM)
                await server.stopped()
            else:
                await server.told(signal.SIGTERM)
        await server.stopped()
        await until(lambda: outside.sessions(server) == 0)
        assert outside.has_group(name) is (kind not in BY_UVICORN)


@pytest.mark.parametrize("kind", sorted(BY_UVICORN))
async def test_lifespan_that_waits_for_tasks(database, outside, kind):
    """Who awaits the tasks as the lifespan ends has uvicorn wait for them."""
    name = f"{kind}-awaited"
    variables = {"SERVERS_TASKS": "1"}
    with Server(kind, database, bridge=True, variables=variables, MAX_THREADS=3) as server:
        with outside.holding():
            await leave_a_task_behind(server, outside, name)
            server.process.send_signal(signal.SIGTERM)
            await until(lambda: "lifespan.shutdown\n" in server.output())
        await server.stopped()
        assert outside.has_group(f"{name}, done")
