"""Servers stop as they do without the line: what runs finishes, nothing hangs, nobody is left."""

import asyncio
import contextlib
import signal

import pytest
from websockets.asyncio.client import connect

from tests.gate import GUARD
from tests.servers.client import CutError, get
from tests.servers.harness import COMMANDS, Server, until

CUTS = {"daphne"}
"""The servers that cut off the requests that run; the others wait for them."""

NO_LIFESPAN = {"daphne"}
"""The servers that do not speak the lifespan protocol."""

WAITS_FOR_SOCKETS = {"hypercorn"}
"""The servers that do not close open sockets themselves. Hypercorn gives up after its
`graceful_timeout`; from Python 3.12 on never: https://github.com/pgjones/hypercorn/issues/308"""

# uvicorn ends by the signal that stopped it.
EXIT_CODES = {
    ("uvicorn-asyncio", signal.SIGTERM): -signal.SIGTERM,
    ("uvicorn-uvloop", signal.SIGTERM): -signal.SIGTERM,
}


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
    assert outcomes == ["begun"] + ["cut" if kind in CUTS else "inserted"] * 3, output
    assert exit_code == EXIT_CODES.get((kind, number), 0), output
    assert "Traceback" not in output, output
    # Each of the calls that ran was two statements; the second one came after the signal. The task
    # no server waits for. A call that was cut off while it waited for a worker never runs.
    late = kind not in CUTS or not bridge
    assert [outside.has_group(name) for name in names] == [True, True, True, late]
    await until(lambda: outside.sessions(server) == 0)
    told = [line for line in output.splitlines() if line.startswith("lifespan")]
    assert told == ([] if kind in NO_LIFESPAN else ["lifespan.startup", "lifespan.shutdown"])
