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
that fails counts as none; the share of those that did is shown. A contestant that does not answer
is ended (`programs.py`); the others go on, and where its figure would be, the reason is. Memory is
what Python allocates (tracemalloc) for 10,000 calls or sockets.

What is measured is in `rows.py`; `report.py` and `charts.py` say it in tables, charts and
sentences, which go into the file with the figures. The file is written after each row.

    python -m tests.bench                     all rows; the page shows them
    python -m tests.bench --only noop         one row (--help names them); may be repeated
    python -m tests.bench --against DIR       also measure the ormbridge package in another folder
    python -m tests.bench --json docs/_recorded/bench.json
    python -m tests.bench --again docs/_recorded/bench.json     say anew what it says
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
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from tests.bench import UNFINISHED
from tests.bench.contestant import DATABASE, SERVER, configure
from tests.bench.programs import ROOT, DidNotFinishError, Program
from tests.bench.report import shown, titled, told, with_words
from tests.bench.rows import BEFORE, GREEN, OURS, ROWS, asks_database

RESULTS = ROOT / "docs/_recorded/bench.json"
FREE_CONNECTIONS = """
    SELECT current_setting('max_connections')::int - count(*) - CASE current_setting('is_superuser')
        WHEN 'on' THEN 0 ELSE current_setting('superuser_reserved_connections')::int END
    FROM pg_stat_activity WHERE backend_type = 'client backend'
"""


@contextlib.contextmanager
def database(rows):
    """Create a database with one user and *rows* groups in it, and drop it when the block ends."""
    import psycopg

    name = f"ormbridge_bench_{os.getpid()}"
    with psycopg.connect(**SERVER, dbname="postgres", autocommit=True) as admin:
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


def start(row, name, options, environment):
    """Start contestant *name* of *row*.

    :raises DidNotFinishError: if the server has not as many connections as the row needs.
    """
    tree = options.against if name == BEFORE else ROOT / "src"
    if "connections" in row:
        wait_for_connections(row["connections"])
        environment = {**environment, "BENCH_CONNECTIONS": str(row["connections"])}
    arguments = OURS if name in (BEFORE, GREEN) else name, row["function"], options.loop
    environment = {**environment, "PYTHONPATH": str(tree.resolve())}
    environment |= {"BENCH_GREEN": "1"} if name == GREEN else {}
    return Program("-m", "tests.bench.contestant", *arguments, **environment)


def take_turn(process, row, options):
    """Let *process* take a turn."""
    seconds = options.seconds * row.get("longer", 1)
    return json.loads(process.ask(seconds, row["callers"], bound=options.bound))


def rounds_of(rows, options, environment):
    """Measure rows that share their processes.

    Returns the rounds of each, which have the turns of all contestants by name; why a contestant of
    it did not finish; and how long it took. Who did not finish a row once has no turn in it again.
    """
    found = {name: [] for name in rows}
    lost = {name: {} for name in rows}
    took = dict.fromkeys(rows, 0.0)
    chance = random.Random(len(rows))
    for _ in range(options.processes):
        with contextlib.ExitStack() as stack:
            processes = {}
            begin = time.perf_counter()
            for each, row in rows.items():
                for name in row["contestants"]:
                    if name not in processes and name not in lost[each] and "fresh" not in row:
                        process = start(row, name, options, environment)
                        processes[name] = stack.enter_context(process)
            for name, process in list(processes.items()):
                try:
                    process.answer(options.bound)
                except DidNotFinishError as error:
                    del processes[name]
                    for each in rows:
                        lost[each][name] = str(error)
            for row in rows:
                took[row] += (time.perf_counter() - begin) / len(rows)
            for number in range(options.rounds):
                for each in chance.sample(list(rows), len(rows)):
                    row, turns, begin = rows[each], {}, time.perf_counter()
                    if number >= row.get("rounds", options.rounds):
                        continue
                    for name in chance.sample(row["contestants"], len(row["contestants"])):
                        if name in lost[each]:
                            continue
                        with contextlib.ExitStack() as alone:
                            try:
                                process = processes.get(name)
                                if process is None:
                                    process = start(row, name, options, environment)
                                    if "fresh" in row:
                                        alone.enter_context(process)
                                    else:  # it was ended in another row
                                        processes[name] = stack.enter_context(process)
                                    process.answer(options.bound)
                                turns[name] = take_turn(process, row, options)
                            except DidNotFinishError as error:
                                lost[each][name] = str(error)
                                processes.pop(name, None)
                    found[each].append(turns)
                    took[each] += time.perf_counter() - begin
    return found, lost, took


def spread(values):
    """Return the median and the range of the middle half."""
    low, middle, high = (
        statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    )
    return {"median": middle, "low": low, "high": high}


def figures(turn):
    """Return what a turn says of the contestant that took it."""
    return {
        "calls_per_second": turn["calls"] / turn["seconds"],
        "cpu_us_per_call": 1e6 * turn["cpu"] / max(turn["calls"], 1),
        "peak_mib": turn["peak_mib"],
        "failed_percent": 100 * turn["failed"] / max(turn["calls"] + turn["failed"], 1),
        **{key: turn[key] for key in ("p50_ms", "p99_ms", "kib") if key in turn},
    }


def summary(row, rounds, lost, took):
    """Return what the rounds say: the figures of each, and how many times ormbridge makes those.

    Of those that are *lost*, it is why.
    """
    names = [name for name in row["contestants"] if name not in lost]
    found = [{name: figures(turns[name]) for name in names} for turns in rounds]
    rates = [{name: one["calls_per_second"] for name, one in each.items()} for each in found]
    goals = {
        key: {name: wanted for name, wanted in row[key].items() if name in row["contestants"]}
        for key in ("reach", "green")
        if key in row
    }
    contestants = {
        name: {UNFINISHED: lost[name]}
        if name in lost
        else {key: spread([each[name][key] for each in found]) for key in found[0][name]}
        for name in row["contestants"]
    }
    for name in names:
        if OURS in names and name != OURS and all(rate[name] for rate in rates):
            ratio = spread([rate[OURS] / rate[name] for rate in rates])
            contestants[name]["ratio"] = ratio
    return {**row, **goals, "rounds": len(rounds), "took": took, "contestants": contestants}


def machine():
    """Return what the figures depend on."""
    packages = [
        *("Django", "asgiref", "channels", "anyio", "psycopg", "psycopg-pool"),
        *("django-async-backend", "uvloop"),
    ]
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": models[0] if models else platform.processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "load": os.getloadavg()[0],  # what else ran in the minute before
        "packages": {
            name: metadata.version(name)
            for name in packages
            if find_spec(name.replace("-", "_").lower())
        },
    }


def revision(folder):
    """Return the commit of the checkout that *folder* is in, or nothing."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()


def durations():
    """Return how long each row took in the recorded run, for --help."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else {}
    took = {name: found[name].get("took", 0) for name in ROWS if name in found}
    rows = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items())
    return f"In the recorded run, all took {sum(took.values()) / 60:.0f} minutes: {rows}."


def groups(names):
    """Return the rows called *names*, by what those have in common that share their processes."""
    found = {}
    for name in names:
        row = ROWS[name]
        alone = name if "apart" in row or "fresh" in row else None
        key = row["function"], row.get("latency"), alone
        found.setdefault(key, {})[name] = dict(row)
    return found


def with_before(row):
    """Return *row* with the build before among the contestants."""
    return {**row, "contestants": [*row["contestants"], BEFORE]}


def free_connections():
    """Return how many connections the server has left for this user."""
    import psycopg

    with psycopg.connect(**SERVER, dbname="postgres") as admin:
        return admin.execute(FREE_CONNECTIONS).fetchone()[0]


def wait_for_connections(count):
    """Wait until the server has *count* connections left: it may not be done with the last turn."""
    end = time.monotonic() + 10
    while (free := free_connections()) < count and time.monotonic() < end:
        time.sleep(0.05)
    if free < count:
        raise DidNotFinishError(f"the server had {free} connections left, and not {count}")


def possible(names):
    """Return *names* without the rows for which the server has too few connections.

    The first of those stays: it is measured with as many as there are.
    """
    wanted = {name: ROWS[name]["connections"] for name in names if "connections" in ROWS[name]}
    free = free_connections() if wanted else 0
    beyond = [name for name in sorted(wanted, key=wanted.get) if wanted[name] >= free][1:]
    if beyond:
        print(f"the server has {free} connections free: left out are {', '.join(beyond)}")
    return [name for name in names if name not in beyond]


def measure(options):
    """Measure the rows that the options name; print each, and write down what there is by then."""
    report = {**machine(), "loop": options.loop, "seconds": options.seconds}
    if options.against:
        report["before"] = revision(options.against)
    measured = {}
    os.environ.pop("ASGI_THREADS", None)  # it would win over the bound that the settings give
    with contextlib.ExitStack() as stack:
        environment = {}
        if any(asks_database(ROWS[name]) for name in options.only):
            counts = any(ROWS[name]["function"].startswith("rows") for name in options.only)
            environment["BENCH_DATABASE"], report["postgresql"] = stack.enter_context(
                database(1_000_000 if counts else 0)
            )
        for (_, delay, _), rows in groups(possible(options.only)).items():
            for row in rows.values():
                if "connections" in row:  # as many as there are
                    row["connections"] = min(row["connections"], free_connections())
            rows = {
                name: with_before(row)
                if options.against and "connections" not in row and OURS in row["contestants"]
                else row
                for name, row in rows.items()
            }
            with contextlib.ExitStack() as latency:
                through = environment
                if delay:
                    server = DATABASE["HOST"], DATABASE["PORT"], str(delay)
                    proxy = latency.enter_context(Program("-m", "tests.bench.proxy", *server))
                    port = proxy.answer(options.bound)
                    through = {**environment, "PGHOST": "127.0.0.1", "PGPORT": port}
                found, lost, took = rounds_of(rows, options, through)
            for name, rounds in found.items():
                measured[name] = summary(rows[name], rounds, lost[name], took[name])
                show(measured[name])
                report["load_after"] = os.getloadavg()[0]
                report["rows"] = {name: measured[name] for name in ROWS if name in measured}
                write(report, options.json)


def show(result):
    """Print one row as a table."""
    print(f"\n{titled(result)} ({result['rounds']} rounds)")
    table = shown(result)
    widths = [max(map(len, column)) for column in zip(table["head"], *table["rows"], strict=True)]
    for cells in (table["head"], *table["rows"]):
        first, *others = zip(cells, widths, strict=True)
        print(f"  {first[0]:{first[1]}}", *(f"{cell:>{width}}" for cell, width in others), sep="  ")
    for line in told(result):
        print(f"  {line}")


def write(report, path):
    """Write *report* and what it says to the file *path*, if that is one."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(with_words(report), indent=1, ensure_ascii=False)
        path.write_text(text + "\n")


def main():
    """Measure what the command line asks for, print it, and write it down where asked."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__.splitlines()[0], epilog=durations()
    )
    parser.add_argument(
        "--only", action="append", choices=ROWS, help="measure this row; may be repeated"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="rounds for each set of processes (default 5)"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=4,
        help="sets of fresh processes (default 4); with the rounds of each, that is 20 rounds",
    )
    parser.add_argument(
        "--seconds", type=float, default=0.3, help="length of one turn (default 0.3)"
    )
    parser.add_argument(
        "--bound",
        type=float,
        default=120,
        metavar="SECONDS",
        help="end a contestant that does not answer for so long (default 120)",
    )
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="asyncio")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="DIR",
        help="also measure the ormbridge in this directory, as 'the build before'",
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--again",
        type=Path,
        metavar="JSON",
        help="measure nothing; write the charts and sentences of this file anew",
    )
    options = parser.parse_args()
    options.only = options.only or list(ROWS)
    if options.against and not (options.against / "ormbridge").is_dir():
        parser.error(f"--against: there is no package 'ormbridge' in {options.against}")
    if options.again:
        write(json.loads(options.again.read_text()), options.again)
    else:
        measure(options)


if __name__ == "__main__":
    main()
