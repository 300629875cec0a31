"""Measure calls a second: ormbridge, what there is without it, and the bound, in one run.

How it is measured. Each contestant is a process of its own that takes short turns, in an order
that is drawn anew for each round: a busy moment of the machine hits all of them alike, and none
always follows the same other one, whose turn may leave the machine slower. While one has its turn
the others sleep. One round (a turn of each) gives one ratio for each pair; what is reported is the
median of these ratios and the range of their middle half. After some rounds the processes are
replaced by fresh ones (`--processes`), since two processes of the same program differ by a few per
cent.

The bound is ten plain threads that loop over the query, with no event loop. Latency comes from a
proxy in its own process (`proxy.py`) that holds each answer back; every contestant, the bound
included, goes through it. The wrapped function is made once, as a decorator does.

A request or a message goes to the application as a server would hand it over (`asgi.py`). A call
that fails counts as none; the share of those that did is shown.

    python -m tests.bench                     all rows; about 15 minutes
    python -m tests.bench --only noop         one row (--help names them); may be repeated
    python -m tests.bench --against DIR       also measure the ormbridge package in another folder
    python -m tests.bench --json docs/_recorded/bench.json
"""

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from docs._ext.record.seals import seal
from tests.bench.contestant import DATABASE, KEPT, NATIVE, PLAIN, POOL, THREADS, configure

ROOT = Path(__file__).absolute().parents[2]
DELAY = 5  # milliseconds that the proxy adds
QUERY = "User.objects.all()[0].username"
OTHERS = ["channels.db", "asgiref"]
# It needs Python 3.12; without it, its rows are shorter.
NATIVES = [NATIVE] if find_spec("django_async_backend") else []
# What is called, by how many callers, by whom, the ratios that ormbridge is to reach (None: any),
# and how much longer a turn is where calls are slow. What is counted, if it is not calls.
ROWS = {
    "noop": {
        "title": "no-op call, 50 callers",
        "function": "noop",
        "callers": 50,
        "contestants": ["ormbridge", *OTHERS, "asgiref, not thread-sensitive"],
        "reach": {"channels.db": 2.5},
    },
    "one": {
        "title": "no-op call, one caller",
        "function": "noop",
        "callers": 1,
        "contestants": ["ormbridge", *OTHERS, "asgiref, not thread-sensitive"],
        "reach": {"channels.db": 1.0},
    },
    "orm": {
        "title": f"{QUERY}, 50 callers, {THREADS} threads",
        "function": "username",
        "callers": 50,
        "contestants": ["ormbridge", "bound", *OTHERS, *NATIVES],
        "reach": {"bound": 0.92, "channels.db": 1.5, **dict.fromkeys(NATIVES, 1.0)},
    },
    "latency": {
        "title": f"the same with {DELAY} ms of latency added",
        "function": "username",
        "callers": 50,
        "contestants": ["ormbridge", "bound", *OTHERS, *NATIVES],
        "reach": {"bound": 0.90, "channels.db": 5.2, **dict.fromkeys(NATIVES, 1.0)},
    },
    "http": {
        "title": "HTTP request that makes one query, 50 clients",
        "function": "get",
        "callers": 50,
        "contestants": ["ormbridge", PLAIN, POOL],
        "reach": {PLAIN: 2.5, POOL: 1.8},
        "longer": 3,
    },
    "startproject": {
        "title": "the same with the middleware that startproject writes down",
        "function": "get startproject",
        "callers": 50,
        "contestants": ["ormbridge", PLAIN, POOL],
        "reach": {PLAIN: None, POOL: None},
        "longer": 3,
    },
    "persistent": {
        "title": "HTTP request, connections kept without the bridge",
        "function": "get",
        "callers": 50,
        # Alone: it leaves no connection to the others.
        "contestants": [KEPT],
        "reach": {},
        "longer": 3,
    },
    "websocket": {
        "title": "WebSocket message that needs no database, one socket",
        "function": "echo",
        "callers": 1,
        "contestants": ["ormbridge", "bare await", "plain Channels"],
        "reach": {"bare await": 0.83, "plain Channels": None},
    },
    "websockets": {
        "title": "the same, 50 sockets",
        "function": "echo",
        "callers": 50,
        "contestants": ["ormbridge", "bare await", "plain Channels"],
        "reach": {"bare await": 0.83, "plain Channels": None},
    },
    "rows": {
        "title": "a million rows, one after the other",
        "function": "rows 1000000 0",
        "callers": 1,
        "contestants": ["ormbridge", "aiterator()"],
        "reach": {"aiterator()": 1.0},
        # A turn is as long as the table, however many seconds it was to take.
        "rounds": 3,
        "unit": "row",
    },
    "busy": {
        "title": "100,000 rows, of which each 2,000 keep the caller busy for 5 ms",
        "function": "rows 100000 0.005",
        "callers": 1,
        "contestants": ["ormbridge", "aiterator()"],
        "reach": {"aiterator()": None},
        "unit": "row",
    },
}


@contextlib.contextmanager
def program(*arguments, **environment):
    """Run a module of this package until the block ends; yields it once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        first = process.stdout.readline()
        if not first:
            raise SystemExit(
                f"{' '.join(arguments)} ended before it was ready: see its error above"
            )
        yield process, first.strip()
    finally:
        process.stdin.close()
        process.wait()


@contextlib.contextmanager
def database(rows):
    """Create a database with one user and *rows* groups in it, and drop it when the block ends."""
    import psycopg

    name = f"ormbridge_bench_{os.getpid()}"
    server = {key: DATABASE[key.upper()] for key in ("host", "port", "user", "password")}
    with psycopg.connect(**server, dbname="postgres", autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            configure(NAME=name)
            from django.contrib.auth.models import User
            from django.core.management import call_command
            from django.db import connection

            call_command("migrate", verbosity=0)
            User.objects.create(username="alice")
            with connection.cursor() as cursor:
                if rows:
                    numbers = "generate_series(1, %s) AS numbers(number)"
                    insert = "INSERT INTO auth_group (name) SELECT 'group ' || number FROM "
                    cursor.execute(insert + numbers, [rows])
                cursor.execute("ANALYZE")
            connection.close()
            yield name, ".".join(admin.execute("SHOW server_version").fetchone()[0].split()[:1])
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def rounds_of(row, options, environment):
    """Measure one row; returns a list of rounds, each the turns of all contestants by name."""
    names = row["contestants"] + [f"ormbridge of {tree}" for tree in options.against]
    result = []
    chance = random.Random(len(names))
    for _ in range(options.processes):
        with contextlib.ExitStack() as stack:
            processes = {}
            for name in names:
                tree = Path(name.partition(" of ")[2] or ROOT / "src").resolve()
                arguments = name, row["function"], str(row["callers"]), options.loop
                started = program(
                    "tests.bench.contestant", *arguments, **environment, PYTHONPATH=str(tree)
                )
                processes[name], _ = stack.enter_context(started)
            for _ in range(min(options.rounds, row.get("rounds", options.rounds))):
                turns = {}
                for name in chance.sample(names, len(names)):
                    seconds = options.seconds * row.get("longer", 1)
                    print(seconds, file=processes[name].stdin, flush=True)
                    turns[name] = json.loads(processes[name].stdout.readline())
                result.append({name: turns[name] for name in names})
    return result


def spread(values):
    """Return the median and the range of the middle half."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def summary(row, rounds):
    """Return what the rounds say: rates, and the ratios to those that ormbridge is held against."""

    def rate(turn):
        return turn["calls"] / turn["seconds"]

    def percent_failed(turn):
        return 100 * turn["failed"] / (turn["calls"] + turn["failed"])

    contestants = {}
    for name in rounds[0]:
        contestants[name] = {
            "calls_per_second": spread([rate(turns[name]) for turns in rounds]),
            "cpu_us_per_call": spread(
                [1e6 * turns[name]["cpu"] / turns[name]["calls"] for turns in rounds]
            ),
            "peak_mib": spread([turns[name]["peak_mib"] for turns in rounds]),
            "failed_percent": spread([percent_failed(turns[name]) for turns in rounds]),
            "ratio_to": {
                other: spread([rate(turns[name]) / rate(turns[other]) for turns in rounds])
                for other in row["reach"]
            },
        }
    return {**row, "rounds": len(rounds), "contestants": contestants}


def show(result):
    """Print one row as a table."""
    print(f"\n{result['title']} ({result['rounds']} rounds)")
    unit = result.get("unit", "call")
    columns = [f"{unit}s/s", "CPU us", *(f"to {other}" for other in result["reach"])]
    print(" " * 34 + "".join(f"{column:>{24 if ' ' in column[:3] else 9}}" for column in columns))
    for name, one in result["contestants"].items():
        line = f"  {name[-31:]:32}{one['calls_per_second']['median']:9.0f}"
        line += f"{one['cpu_us_per_call']['median']:9.1f}"
        for ratio in one["ratio_to"].values():
            middle = f"({ratio['low']:.2f} to {ratio['high']:.2f})"
            line += f"{ratio['median']:8.3f}{middle:>16}"
        if "unit" in result:
            line += f"  at most {one['peak_mib']['high']:.0f} MiB"
        if one["failed_percent"]["high"]:
            line += f"  failed: {one['failed_percent']['median']:.0f} %"
        print(line)
    for other, wanted in result["reach"].items():
        if wanted is None:
            continue
        seen = result["contestants"]["ormbridge"]["ratio_to"][other]["median"]
        verdict = "reached" if seen >= wanted else "short"
        print(f"  {verdict}: {seen:.2f} of {other}, wanted {wanted:.2f}")


def machine():
    """Return what the figures depend on."""
    packages = ["Django", "asgiref", "channels", "psycopg", "psycopg-pool", *NATIVES]
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": models[0] if models else platform.processor(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],  # what else ran in the minute before
        "packages": {name: metadata.version(name) for name in packages},
    }


def main():
    """Measure what the command line asks for, print it, and write it down where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--only", action="append", choices=ROWS, help="measure this row; may be repeated"
    )
    parser.add_argument(
        "--rounds", type=int, default=10, help="rounds for each set of processes (default 10)"
    )
    parser.add_argument(
        "--processes", type=int, default=4, help="sets of fresh processes (default 4)"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="length of one turn (default 0.3)"
    )
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="SRC",
        help="also measure the ormbridge in this directory",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    rows = {name: ROWS[name] for name in options.only or ROWS}
    report = {**machine(), "loop": options.loop, "seconds": options.seconds, "rows": {}}
    os.environ.pop("ASGI_THREADS", None)  # it would win over the bound that the settings give
    with contextlib.ExitStack() as stack:
        environment = {}
        if any(row["function"] not in ("noop", "echo") for row in rows.values()):
            environment["BENCH_DATABASE"], report["postgresql"] = stack.enter_context(
                database(1_000_000 if any("unit" in row for row in rows.values()) else 0)
            )
        for name, row in rows.items():
            with contextlib.ExitStack() as latency:
                if name == "latency":
                    server = DATABASE["HOST"], DATABASE["PORT"], str(DELAY)
                    _, port = latency.enter_context(program("tests.bench.proxy", *server))
                    rounds = rounds_of(
                        row, options, {**environment, "PGHOST": "127.0.0.1", "PGPORT": port}
                    )
                else:
                    rounds = rounds_of(row, options, environment)
            report["rows"][name] = summary(row, rounds)
            show(report["rows"][name])
    report["seal"] = seal(report)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
