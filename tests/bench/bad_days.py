"""Measure what requests see on a bad day: too many clients, and a database that goes away.

How it is measured. An application whose view makes one query is given requests by clients in its
own process, as in the benchmark (`asgi.py`). Between it and PostgreSQL is a proxy (`proxy.py`) that
can break: it closes all connections, takes none for a while, or passes on nothing. Each turn has a
process of its own (`load.py`); the turns of a round follow each other in an order that is drawn
anew. What is reported is the median of the rounds.

    python -m tests.bench.bad_days                  all of it: some ten minutes
    python -m tests.bench.bad_days --rounds 1 --only overload

The results are written to docs/_recorded/bad_days.json, or where ``--json`` says.
"""

import argparse
import json
import random
import statistics
import time
from collections import Counter
from pathlib import Path

import psycopg

from docs._ext.record.seals import seal
from tests.bench.__main__ import database, machine, wait_for_connections
from tests.bench.contestant import DATABASE, SERVER
from tests.bench.load import PAUSE, TIMEOUT
from tests.bench.programs import Program
from tests.bench.rows import GREEN, OURS, PLAIN, POOL, THREADS

RESULTS = "docs/_recorded/bad_days.json"
CONTESTANTS = [OURS, GREEN, POOL, PLAIN]
#: Milliseconds that each answer of the server takes.
LATENCY = 10
#: Seconds before something breaks, of that, and after it.
BEFORE, BROKEN, AFTER = 1.5, 2, 2.5
#: Seconds in which a program has to answer.
BOUND = 120
# The columns: the figure, what it is called, and how it is written.
COLUMNS = {
    "answered": ("answered", "{:,.0f}"),
    "slowest": ("99 % within", "{:.2f} s"),
    "left": ("left", "{:,.0f}"),
    "refused": ("503", "{:,.0f}"),
    "failed": ("500", "{:,.0f}"),
    "opened": ("opened", "{:,.0f}"),
    "most": ("open at once", "{:,.0f}"),
    "mended": ("last failure after", "{:.1f} s"),
    "running": ("queries that go on", "{:,.0f}"),
    "idle": ("the last ends after", "{:.1f} s"),
    "late": ("loop late by", "{:,.0f} ms"),
}
_ALWAYS = {"refused", "failed", "late"}
_ANSWERS = {*_ALWAYS, "answered", "slowest", "opened", "most"}
_BROKEN = {*_ANSWERS, "mended"}
# What happens, and to how many clients; what the proxy is told as it breaks, and as that ends;
# after how many seconds the clients leave, which then ask for what takes one; which figures count.
DAYS = {
    "overload": {
        "what": "There are {clients} clients, which is more than {connections} connections can "
        "answer within that time.",
        "clients": 400,
        "columns": _ANSWERS,
    },
    "cut": {
        "what": "{clients} clients. All connections are closed at once, as where the server "
        "restarts quickly, or another takes over.",
        "clients": 50,
        "breaks": "cut",
        "columns": _BROKEN,
    },
    "away": {
        "what": "{clients} clients. All connections are closed, and for {broken} seconds the "
        "server takes no new ones.",
        "clients": 50,
        "breaks": "away",
        "mends": "back",
        "columns": _BROKEN,
    },
    "hold": {
        "what": "{clients} clients. For {broken} seconds nothing passes, in either direction. "
        "Then all goes on; nothing was lost.",
        "clients": 50,
        "breaks": "hold",
        "mends": "go",
        "columns": _BROKEN,
    },
    "leave": {
        "what": "{clients} clients ask for what takes a second, and each leaves, and asks again, "
        "after {patience:.1f} s. Then no more come.",
        "clients": 50,
        "patience": 0.1,
        "columns": {*_ALWAYS, "left", "running", "idle"},
    },
}
HOW = (
    "{connections} connections, and each answer of PostgreSQL takes {latency} ms. A request waits "
    "{timeout} s for a connection at the most: that is TIMEOUT of ormbridge, and the timeout of "
    "Django's pool. A client whose request failed tries again after {pause:.0f} ms."
)
RUNNING = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = %s AND state = 'active' AND query LIKE '%%pg_sleep(%%'
"""


def take_turn(name, day, database):
    """Let clients of *name* have one *day*; returns its figures."""
    wait_for_connections(60)
    server = DATABASE["HOST"], DATABASE["PORT"], str(LATENCY)
    with (
        psycopg.connect(**SERVER, dbname="postgres", autocommit=True) as admin,  # as long as it can
        Program("-m", "tests.bench.proxy", *server) as proxy,
    ):
        environment = {"BENCH_DATABASE": database, "PGHOST": "127.0.0.1"}
        environment["PGPORT"] = proxy.answer(BOUND)
        environment |= {"BENCH_GREEN": "1"} if name == GREEN else {}
        load = Program("-m", "tests.bench.load", OURS if name == GREEN else name, **environment)
        with load:
            load.answer(BOUND)
            proxy.ask("seen", bound=BOUND)
            broken = BROKEN if "mends" in day else 0
            words = BEFORE + broken + AFTER, day["clients"], day.get("patience", "")
            print(*words, file=load.process.stdin, flush=True)
            time.sleep(BEFORE)
            seen = [proxy.ask(day.get("breaks", "seen"), bound=BOUND)]
            time.sleep(broken)
            seen.append(proxy.ask(day.get("mends", "seen"), bound=BOUND))
            mended = time.monotonic()
            made = json.loads(load.answer(BOUND))
            made["running"], made["idle"] = until_idle(admin, database)
            seen.append(proxy.ask("seen", bound=BOUND))
    return figures(day, made, [[int(count) for count in each.split()] for each in seen], mended)


def until_idle(admin, database):
    """Return how many slow queries run now, and in how many seconds the last of them ends."""
    began, running = time.monotonic(), []
    while not running or running[-1]:
        running.append(admin.execute(RUNNING, [database]).fetchone()[0])
    return running[0], time.monotonic() - began if running[0] else 0


def figures(day, made, seen, mended):
    """Return what the requests and the connections of one turn say, as far as it counts that *day*.

    :param seen: how many connections were opened, and at once, of each part of the turn.
    :param mended: when it was over.
    """
    requests = made["requests"]
    status = Counter(status for *_, status in requests)
    bad = [ended for _, ended, status in requests if status != 200]
    took = [ended - began for began, ended, status in requests if status == 200]
    found = {
        "answered": status.pop(200, 0),
        "refused": status.pop(503, 0),
        "left": status.pop(499, 0),
        "failed": status.total(),
        "slowest": statistics.quantiles(took, n=100)[98] if took[1:] else 0,
        "opened": sum(opened for opened, _ in seen),
        "most": max(most for _, most in seen),
        "mended": max([0, *(ended - mended for ended in bad)]),
        "running": made["running"],
        "idle": made["idle"],
        "late": made["late"],
    }
    return {key: found[key] for key in COLUMNS if key in day["columns"]}


def in_the_middle(turns):
    """Return the median of each figure of *turns*."""
    return {figure: statistics.median(turn[figure] for turn in turns) for figure in turns[0]}


def table(found):
    """Return the table of one day: a row for each contestant."""
    head = ["application", *(COLUMNS[key][0] for key in found[OURS])]
    rows = [
        [name, *(COLUMNS[key][1].format(figure) for key, figure in figures.items())]
        for name, figures in found.items()
    ]
    return {"head": head, "rows": rows}


def main():
    """Measure, print the tables, and write them down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="turns of each figure (default 5)")
    parser.add_argument("--only", action="append", choices=DAYS, help="this day; may be repeated")
    parser.add_argument("--json", type=Path, default=Path(RESULTS), help=f"default {RESULTS}")
    options = parser.parse_args()
    facts = {"latency": LATENCY, "timeout": TIMEOUT, "pause": 1000 * PAUSE}
    facts |= {"connections": THREADS, "broken": BROKEN}
    report = {**machine(), **facts, "rounds": options.rounds, "days": {}, "shown": {}}
    report["sentences"] = {"how": HOW.format(**facts)}
    chance = random.Random(options.rounds)
    with database(0) as (made, report["postgresql"]):
        for key in options.only or DAYS:
            day, turns = DAYS[key], {each: [] for each in CONTESTANTS}
            for _ in range(options.rounds):
                for each in chance.sample(CONTESTANTS, len(CONTESTANTS)):
                    turns[each].append(take_turn(each, day, made))
            medians = {each: in_the_middle(found) for each, found in turns.items()}
            report["days"][key] = {"clients": day["clients"], "contestants": medians}
            report["shown"][key] = shown = table(medians)
            report["sentences"][key] = said = day["what"].format(**day, **facts)
            print("", said, shown["head"], *shown["rows"], sep="\n", flush=True)
    report["seal"] = seal(report)
    options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
