"""Instructions for a call: what a busy machine does not change, so a check may ask for it.

    python -m tests.bench.instructions             count, and compare with what was recorded
    python -m tests.bench.instructions --record    write docs/_recorded/instructions.json

Valgrind's callgrind counts what a process executes. Django is loaded once; then each row forks two
children, which make few calls and many, and the difference is that of the calls alone. The database
is SQLite: no server's answer, sooner or later, changes what the process does. Each row is compared
as a multiple of asgiref's `sync_to_async` of a function that does nothing, counted in the same run,
so another build of Python gives about the same number.
"""

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench.contestant import configure, wrap

ROOT = Path(__file__).absolute().parents[2]
RECORDED = ROOT / "docs/_recorded/instructions.json"
ALLOWED = 1.03
UNIT = "asgiref"
#: What is called, by whom, by how many callers, and how often by the two children. Three callers
#: find a worker each; where calls wait, how often a loop looks at the pool depends on the clock.
ROWS = {
    UNIT: ("noop", "asgiref, not thread-sensitive", 50, 500, 2500),
    "noop": ("noop", "ormbridge", 50, 500, 2500),
    "orm": ("username", "ormbridge", 3, 50, 350),
    "http": ("get", "ormbridge", 3, 50, 200),
}


async def make_calls(name, function, callers, calls):
    """Make *calls* calls, several at a time."""
    call = wrap(name, function)

    async def caller(number):
        for _ in range(number, calls, callers):
            await call()

    await asyncio.gather(*(caller(number) for number in range(callers)))


def run_rows(database):
    """Make the calls of all rows, each in a child; prints which. Runs under valgrind."""
    configure(ENGINE="django.db.backends.sqlite3", NAME=database, OPTIONS={})
    import django.core.asgi  # noqa: F401 - once, and not in each child
    from django.db import models  # noqa: F401

    import ormbridge  # noqa: F401

    for row, (function, name, callers, *numbers) in ROWS.items():
        for calls in numbers:
            child = os.fork()
            if not child:
                asyncio.run(make_calls(name, function, callers, calls))
                os._exit(0)
            _, status = os.waitpid(child, 0)
            print(child, row, calls, status, flush=True)


def measure():
    """Return the instructions for a call, by row."""
    with tempfile.TemporaryDirectory() as folder:
        database = str(Path(folder) / "bench.sqlite3")
        command = [sys.executable, "-m", "tests.bench.instructions"]
        subprocess.run([*command, "--database", database], cwd=ROOT, check=True)
        valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
        done = subprocess.run(
            [*valgrind, "--fair-sched=yes", *command, "--rows", database],
            env={**os.environ, "PYTHONHASHSEED": "0"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    collected = dict(re.findall(r"==(\d+)== Collected : (\d+)", done.stderr))
    found = [line.split() for line in done.stdout.splitlines()]
    if done.returncode or any(status != "0" for *_, status in found):
        raise SystemExit(done.stderr)
    counts = {(row, int(calls)): int(collected[child]) for child, row, calls, _ in found}
    return {
        row: (counts[row, many] - counts[row, few]) / (many - few)
        for row, (*_, few, many) in ROWS.items()
    }


def make_database(path):
    """Make the database that the rows read."""
    configure(ENGINE="django.db.backends.sqlite3", NAME=path, OPTIONS={})
    from django.contrib.auth.models import User
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    User.objects.create(username="alice")


def main():
    """Count, and record or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true", help="write the counts down")
    parser.add_argument("--database", help=argparse.SUPPRESS)
    parser.add_argument("--rows", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.database:
        make_database(options.database)
        return
    if options.rows:
        run_rows(options.rows)
        return
    rows = measure()
    multiples = {row: number / rows[UNIT] for row, number in rows.items()}
    if options.record:
        RECORDED.write_text(json.dumps(multiples, indent=2) + "\n")
    recorded = json.loads(RECORDED.read_text())
    for row, number in rows.items():
        now, then = multiples[row], recorded[row]
        print(f"{row:8}{number:12,.0f} instructions a call, {now:.3f} of asgiref's, was {then:.3f}")
    if dearer := [row for row in ROWS if multiples[row] > recorded[row] * ALLOWED]:
        raise SystemExit(f"more than {ALLOWED - 1:.0%} dearer than recorded: {', '.join(dearer)}")


if __name__ == "__main__":
    main()
