"""Twenty sockets on an unmodified sync consumer with a query of 50 ms, with and without the line.

Each server is started twice. Twenty clients connect and all send their message at once; what is
printed is the time until the last answer, the median of some rounds after one that only warms up.

    python -m tests.servers.twenty_sockets                  all servers
    python -m tests.servers.twenty_sockets --server granian
"""

import argparse
import asyncio
import contextlib
import statistics
import time

from websockets.asyncio.client import connect

from tests.servers.harness import COMMANDS, Server, new_database

SOCKETS = 20
THREADS = 10
ROUNDS = 5


async def measure(server: Server) -> float:
    """Return the seconds until all have their answer, the median of ROUNDS."""
    address = f"ws://127.0.0.1:{server.port}/sockets/sync"
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(connect(address)) for _ in range(SOCKETS)]
        taken = []
        for _ in range(1 + ROUNDS):
            begin = time.perf_counter()
            await asyncio.gather(*[client.send("sleep") for client in sockets])
            await asyncio.gather(*[client.recv() for client in sockets])
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--server", action="append", choices=COMMANDS, help="may be repeated")
    options = parser.parse_args()
    with new_database() as database:
        print(f"{SOCKETS} sockets, a query of 50 ms each, {THREADS} threads; seconds, the median")
        print(f"of {ROUNDS} rounds\n")
        print(f"{'':16} {'without':>8} {'with':>8}")
        for kind in options.server or COMMANDS:
            seconds = []
            for bridge in (False, True):
                with Server(kind, database, bridge=bridge, MAX_THREADS=THREADS) as server:
                    seconds.append(asyncio.run(measure(server)))
            print(f"{kind:16} {seconds[0]:8.2f} {seconds[1]:8.2f}", flush=True)


if __name__ == "__main__":
    main()
