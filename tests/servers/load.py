"""Put load on a real server, and let PostgreSQL say how many connections it ever has.

Hundreds of clients, each a request or a socket at a time: async and sync views, async, sync and
JSON consumers, streams, tasks that outlive their request, views that raise, clients that leave in
the middle. All the time a connection from outside counts the server's connections. When the clients
have gone, it goes on until there are none.

    python -m tests.servers.load --seconds 60 --clients 500
    python -m tests.servers.load --server granian --max-threads 4 --max-idle 2
"""

import argparse
import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from websockets.asyncio.client import connect

from tests.core.gate import GUARD
from tests.servers.client import CutError, get, opened, read_head
from tests.servers.harness import COMMANDS, Outside, Sampler, Server, new_database, until


@dataclass
class Report:
    """What came of it: what was seen from outside, and what the clients met."""

    most: int = 0
    """The highest number of connections of the server."""
    most_busy: int = 0
    """The highest number of queries of 50 ms at once."""
    samples: int = 0
    done: Counter[str] = field(default_factory=Counter)
    """What went as it should, by kind."""
    errors: Counter[str] = field(default_factory=Counter)
    """What should not have been, by kind."""
    drained: float = 0.0
    """Seconds from the end of the load to the last connection."""


async def ask(port: int, chance: random.Random) -> str:
    """Ask one of the views that answer."""
    task = f"background/{chance.getrandbits(64)}"
    path = chance.choice(["alive", "async", "sync", "async/sleep", "sync/sleep", task])
    status, body = await get(port, f"/{path}")
    if status != 200:
        raise ValueError(f"{path} answered {status}: {body[:60]!r}")
    return "request answered"


async def fail(port: int, chance: random.Random) -> str:
    """Ask one of the views that raise."""
    path = chance.choice(["async/raise", "sync/raise", "database/error"])
    status, _ = await get(port, f"/{path}")
    if status != 500:
        raise ValueError(f"{path} answered {status}")
    return "view raised: 500"


async def fail_late(port: int, chance: random.Random) -> str:
    """Ask the view that raises when its answer has begun."""
    try:
        await get(port, "/stream/raise")
    except CutError:
        return "stream raised: cut"
    raise ValueError("the stream that raises was complete")


async def leave(port: int, chance: random.Random) -> str:
    """Leave in the middle of a request."""
    async with opened(port, chance.choice(["/async/sleep", "/sync/sleep"])):
        await asyncio.sleep(chance.random() * 0.1)
    return "client left a request"


async def listen(port: int, chance: random.Random) -> str:
    """Begin to read a stream that never ends, and leave."""
    async with opened(port, "/events") as reader:
        await read_head(reader)
        await reader.readuntil(b"\n\n")
        await asyncio.sleep(chance.random() * 0.5)
    return "stream read"


async def talk(port: int, chance: random.Random) -> str:
    """Send some messages through a socket, one after the other, and say goodbye."""
    name = chance.choice(["sync", "async", "json"])
    address = f"ws://127.0.0.1:{port}/sockets/{name}"
    async with connect(address, open_timeout=GUARD) as client:
        for _ in range(chance.randrange(1, 5)):
            query = chance.choice(["count", "sleep"])
            message = f'{{"query": "{query}"}}' if name == "json" else query
            await client.send(message)
            answer = await client.recv()
            if answer != message:
                raise ValueError(f"{name} answered {answer!r} to {message!r}")
    return "socket served"


async def hang_up(port: int, chance: random.Random) -> str:
    """Send some messages at once, and leave without reading an answer or saying goodbye."""
    name = chance.choice(["sync", "async"])
    address = f"ws://127.0.0.1:{port}/sockets/{name}"
    async with connect(address, open_timeout=GUARD) as client:
        for _ in range(3):
            await client.send("sleep")
        await asyncio.sleep(chance.random() * 0.1)
        client.transport.abort()
    return "client left a socket"


# What a client does next, and how often.
ACTIONS: dict[Callable[[int, random.Random], Awaitable[str]], int] = {
    ask: 8,
    talk: 4,
    leave: 2,
    hang_up: 1,
    listen: 1,
    fail: 1,
    fail_late: 1,
}


async def client(server: Server, seconds: float, chance: random.Random, report: Report) -> None:
    """Do one thing after the other, for so many *seconds*."""
    end = time.monotonic() + seconds
    actions = dict(ACTIONS)
    if server.kind == "daphne":
        del actions[fail_late]  # it leaves the client of a stream that raises waiting
    while time.monotonic() < end:
        (action,) = chance.choices(list(actions), list(actions.values()))
        try:
            async with asyncio.timeout(2 * GUARD):
                report.done[await action(server.port, chance)] += 1
        except Exception as error:  # each is counted
            report.errors[f"{action.__name__}: {type(error).__name__}: {error}"] += 1


async def load(server: Server, seconds: float, clients: int) -> Report:
    """Put load on *server* and wait until all of its connections are gone.

    :raises TimeoutError: if connections are left long after MAX_IDLE.
    """
    report = Report()
    with (
        Sampler(server, pause=0.002) as sampler,
        contextlib.closing(Outside(server.database)) as outside,
    ):
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                chance = random.Random(number)
                group.create_task(client(server, seconds, chance, report))
        end = time.monotonic()
        await until(lambda: not outside.sessions(server), server.settings["MAX_IDLE"] + GUARD)
        report.drained = time.monotonic() - end
    report.most = sampler.most
    report.most_busy = sampler.most_sleeping
    report.samples = sampler.samples
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", choices=COMMANDS, default="uvicorn-uvloop")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--max-threads", type=int, default=10)
    parser.add_argument("--max-idle", type=float, default=5, help="seconds")
    options = parser.parse_args()
    settings = {"MAX_THREADS": options.max_threads, "MAX_IDLE": options.max_idle}
    with (
        new_database() as database,
        Server(options.server, database, bridge=True, **settings) as server,
    ):
        print(f"{options.server}, {options.clients} clients, {options.seconds:g} s, {settings}")
        report = asyncio.run(load(server, options.seconds, options.clients))
    print(f"most connections: {report.most}, in {report.samples} samples")
    print(f"most queries at once: {report.most_busy}")
    print(f"seconds from the end of the load to no connection: {report.drained:.1f}")
    for title, counter in (("done", report.done), ("errors", report.errors)):
        print(f"{title}: {counter.total()}")
        for kind, number in counter.most_common():
            print(f"{number:8}  {kind}")


if __name__ == "__main__":
    main()
