"""Measure the stack of examples/deployment: one, two and four processes, behind nginx.

How it is measured. The whole stack runs on this machine, and so do the clients: one process, which
takes a part of the same CPUs. For each server and number of processes a stack is started afresh.
The clients take short turns; what is reported is the median of the turns. All the time the
connections at PgBouncer and at PostgreSQL are counted; what is reported is the most that were seen.
Then sockets are opened and left alone, to see what an open one costs.

    python -m tests.bench.stack                     about five minutes
    python -m tests.bench.stack --rounds 2 --seconds 1 --open 100 --processes 1

The results are written to docs/_recorded/stack.json, or where ``--json`` says.
"""

import argparse
import asyncio
import json
import resource
import statistics
import time
from pathlib import Path

from docs._ext.record.seals import seal
from examples.deployment.stack import parts
from examples.deployment.stack.ports import free_ports
from examples.deployment.stack.running import Stack
from tests.bench.__main__ import machine
from tests.bench.budget import THREADS, budget
from tests.bench.clients import Failed, Http, Socket

STACK = "docs/_recorded/stack.json"
CLIENTS = 50


async def turn(action, seconds):
    """Have each client repeat *action*; return how often a second it went well, and the rest."""
    counts = {"well": 0, "failed": 0}
    begin = time.perf_counter()

    async def client(number):
        repeat = action(number)
        while time.perf_counter() - begin < seconds:
            try:
                await repeat()
                counts["well"] += 1
            except Failed:
                counts["failed"] += 1

    await asyncio.gather(*(client(number) for number in range(CLIENTS)))
    return counts["well"] / (time.perf_counter() - begin), counts["failed"]


class Watch:
    """Counts connections at PgBouncer and PostgreSQL until the block ends.

    ``most`` has the highest numbers seen.
    """

    def __init__(self, stack):
        self.stack = stack
        self.most = {"pgbouncer": 0, "postgresql": 0}

    async def __aenter__(self):
        self.task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *exc_info):
        self.task.cancel()
        await asyncio.wait([self.task])

    async def run(self):
        while True:
            seen = await asyncio.to_thread(self.stack.connections)
            self.most = {name: max(most, seen[name]) for name, most in self.most.items()}
            await asyncio.sleep(0.25)


def requests(port):
    """Return the action of a client that sends one request after the other."""
    return lambda number: Http(port).once


def sockets(port):
    """Return the action of a client that opens a socket, says something, and leaves."""

    def action(number):
        async def repeat():
            socket = Socket(port, f"room{number}")
            await socket.open()
            socket.say({})
            await socket.heard()
            socket.close()

        return repeat

    return action


async def many_open(stack, count, rounds):
    """Open *count* sockets in one room and leave them open; return what they cost and can do."""
    before = memory(stack)
    opened = [Socket(stack.ports["nginx"], "all") for _ in range(count)]
    for some in range(0, count, CLIENTS):
        await asyncio.gather(*(each.open() for each in opened[some : some + CLIENTS]))
    after = memory(stack)
    # What is idle is closed by nobody so soon: the count is of what sockets hold.
    rates, heard = [], []
    for _ in range(rounds):
        begin = time.perf_counter()
        for each in opened:
            each.say({})
        await asyncio.gather(*(each.heard() for each in opened))
        rates.append(count / (time.perf_counter() - begin))
        begin = time.perf_counter()
        opened[0].say({"say": "hello"})
        await asyncio.gather(*(each.heard() for each in opened))
        heard.append(count / (time.perf_counter() - begin))
    for each in opened:
        each.close()
    return {
        "open": count,
        "kib": round((after["app"] - before["app"]) / count, 1),
        "nginx_kib": round((after["nginx"] - before["nginx"]) / count, 1),
        "process_mib": round(before["app"] / 1024 / stack.count),
        "messages": spread(rates),
        "deliveries": spread(heard),
    }


def memory(stack):
    """Return how many KiB the processes of the application and of nginx have in memory."""
    nginx = stack.processes["nginx"].pid
    children = Path(f"/proc/{nginx}/task/{nginx}/children").read_text().split()
    return {"app": sum(map(resident, stack.servers())), "nginx": sum(map(resident, children))}


def resident(pid):
    """Return the KiB that are of the process *pid* alone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def spread(values):
    """Return the median, the least and the most."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


async def measure(stack, options):
    """Return the figures of one running stack."""
    port = stack.ports["nginx"]
    figures, failed = {}, 0
    async with Watch(stack) as watch:
        for name, action in (("requests", requests(port)), ("sockets", sockets(port))):
            await turn(action, 1)
            turns = [await turn(action, options.seconds) for _ in range(options.rounds)]
            figures[name] = spread([rate for rate, _ in turns])
            failed += sum(count for _, count in turns)
        figures["idle"] = await many_open(stack, options.open, options.rounds)
    return {**figures, "failed": failed, "most": watch.most, "threads": stack.count * THREADS}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each figure (default 5)")
    parser.add_argument("--seconds", type=float, default=3, help="length of a turn (default 3)")
    parser.add_argument("--open", type=int, default=1000, help="sockets left open (default 1000)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--json", type=Path, default=Path(STACK), help=f"default {STACK}")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    report = {
        **machine(),
        "seconds": options.seconds,
        "clients": CLIENTS,
        "versions": {},
        "budget": {},
    }
    report["servers"] = {server: {} for server in parts.SERVERS}
    for server, rows in report["servers"].items():
        report["versions"] |= parts.versions(server)
        for processes in options.processes:
            with Stack(free_ports(), server, processes, THREADS) as stack:
                try:
                    rows[str(processes)] = row = asyncio.run(measure(stack, options))
                except Failed as error:
                    raise SystemExit(f"{error}\n{stack.logs['app'].read_text()}") from error
            print(
                f"{server:9} {processes} processes: {row['requests']['median']:6.0f} requests/s, "
                f"{row['sockets']['median']:6.0f} sockets/s, "
                f"{row['idle']['messages']['median']:6.0f} messages/s, "
                f"{row['idle']['deliveries']['median']:6.0f} deliveries/s, "
                f"{row['idle']['kib']} KiB a socket, {row['most']}, {row['failed']} failed",
                flush=True,
            )
    # Each server with its own figures: what a socket costs differs most.
    for server, rows in report["servers"].items():
        idle = rows[str(min(options.processes))]["idle"]
        one = {name: idle[name] for name in ("kib", "nginx_kib", "process_mib")}
        one["messages"] = idle["messages"]["median"]
        report["budget"][server] = {
            "one": one,
            **{str(count): budget(count, one) for count in (1_000, 100_000)},
        }
    report["seal"] = seal(report)
    options.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
