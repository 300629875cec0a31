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
from pathlib import Path

from docs._ext.record.seals import seal
from tests.bench.__main__ import database, machine, wait_for_connections
from tests.bench.contestant import DATABASE
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
# What happens, and to how many clients: what the proxy is told as it breaks, and as that ends.
DAYS = {
    "overload": {
        "what": "There are {clients} clients, which is more than {connections} connections can "
        "answer within that time.",
        "clients": 400,
        "breaks": None,
        "mends": None,
    },
    "cut": {
        "what": "{clients} clients. All connections are closed at once, as where the server "
        "restarts quickly, or another takes over.",
        "clients": 50,
        "breaks": "cut",
        "mends": None,
    },
    "away": {
        "what": "{clients} clients. All connections are closed, and for {broken} seconds the "
        "server takes no new ones.",
        "clients": 50,
        "breaks": "away",
        "mends": "back",
    },
    "hold": {
        "what": "{clients} clients. For {broken} seconds nothing passes, in either direction. "
        "Then all goes on; nothing was lost.",
        "clients": 50,
        "breaks": "hold",
        "mends": "go",
    },
}
HOW = (
    "{connections} connections, and each answer of PostgreSQL takes {latency} ms. A request waits "
    "{timeout} s for a connection at the most: that is TIMEOUT of ormbridge, and the timeout of "
    "Django's pool. A client whose request failed tries again after {pause:.0f} ms."
)
# The columns: the figure, what it is called, and how it is written.
COLUMNS = {
    "answered": ("answered", "{:,.0f}"),
    "slowest": ("99 % within", "{:.2f} s"),
    "refused": ("503", "{:,.0f}"),
    "failed": ("500", "{:,.0f}"),
    "opened": ("opened", "{:,.0f}"),
    "most": ("open at once", "{:,.0f}"),
    "mended": ("last failure after", "{:.1f} s"),
    "late": ("loop late by", "{:,.0f} ms"),
}


def take_turn(name, day, environment, options):
    """Let clients of *name* have one *day*; returns its figures."""
    wait_for_connections(60)
    server = DATABASE["HOST"], DATABASE["PORT"], str(LATENCY)
    with Program("-m", "tests.bench.proxy", *server) as proxy:
        environment = {**environment, "PGHOST": "127.0.0.1", "PGPORT": proxy.answer(BOUND)}
        environment |= {"BENCH_GREEN": "1"} if name == GREEN else {}
        load = Program("-m", "tests.bench.load", OURS if name == GREEN else name, **environment)
        with load:
            load.answer(BOUND)
            proxy.ask("seen", bound=BOUND)
            broken = BROKEN if day["mends"] else 0
            seconds = BEFORE + broken + AFTER
            print(seconds, day["clients"], file=load.process.stdin, flush=True)
            time.sleep(BEFORE)
            seen = [proxy.ask(day["breaks"] or "seen", bound=BOUND)]
            time.sleep(broken)
            if day["mends"]:
                seen.append(proxy.ask(day["mends"], bound=BOUND))
            mended = time.monotonic()
            made = json.loads(load.answer(BOUND))
            seen.append(proxy.ask("seen", bound=BOUND))
    return figures(made, [[int(count) for count in each.split()] for each in seen], mended)


def figures(made, seen, mended):
    """Return what the requests and the connections of one turn say.

    :param seen: how many connections were opened, and at once, of each part of the turn.
    :param mended: when it was over.
    """
    requests = made["requests"]
    bad = [ended for _, ended, status in requests if status != 200]
    took = [ended - began for began, ended, status in requests if status == 200]
    return {
        "answered": sum(status == 200 for *_, status in requests),
        "refused": sum(status == 503 for *_, status in requests),
        "failed": sum(status not in (200, 503) for *_, status in requests),
        "slowest": statistics.quantiles(took, n=100)[98],
        "opened": sum(opened for opened, _ in seen),
        "most": max(most for _, most in seen),
        "mended": max([0, *(ended - mended for ended in bad)]),
        "late": 1000 * made["late"],
    }


def in_the_middle(turns):
    """Return the median of each figure of *turns*."""
    return {figure: statistics.median(turn[figure] for turn in turns) for figure in COLUMNS}


def table(day, found):
    """Return the table of one day: a row for each contestant."""
    columns = [key for key in COLUMNS if key != "mended" or day["breaks"]]
    head = ["application", *(COLUMNS[key][0] for key in columns)]
    rows = [
        [name, *(COLUMNS[key][1].format(figures[key]) for key in columns)]
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
    with database(0) as (name, report["postgresql"]):
        for key in options.only or DAYS:
            day, turns = DAYS[key], {each: [] for each in CONTESTANTS}
            for _ in range(options.rounds):
                for each in chance.sample(CONTESTANTS, len(CONTESTANTS)):
                    turns[each].append(take_turn(each, day, {"BENCH_DATABASE": name}, options))
            medians = {each: in_the_middle(found) for each, found in turns.items()}
            report["days"][key] = {**day, "contestants": medians}
            report["shown"][key] = shown = table(day, medians)
            report["sentences"][key] = said = day["what"].format(**day, **facts)
            print("", said, shown["head"], *shown["rows"], sep="\n", flush=True)
    report["seal"] = seal(report)
    options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
