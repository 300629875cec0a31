#!/usr/bin/env bash
# Each new greenlet maps a stack and unmaps it at its end; no count of instructions shows it.
#
# Versions: CPython 3.13, greenlet 3.5.6, SQLAlchemy 2.1.9, aiosqlite 0.22.1.
# Needs:    Linux, Python 3.13 (set PYTHON to choose one).
# Expected: to make a greenlet is cheap: memory comes from Python's allocator, which keeps what was
#           freed for the next one.
# Happens:  CPython has a stack for the frames of each greenlet. Its first piece of 16 KiB is mapped
#           when the first Python frame is pushed, and unmapped when the greenlet ends: two system
#           calls and a page fault for every greenlet. One that is switched to again costs none.
#           SQLAlchemy makes a new one for each statement that is awaited.
# Hurt:     who builds on a greenlet a call, and measures in instructions: the kernel's part is not
#           counted. It was half of the CPU of a call that does nothing, where greenlets were not
#           used again.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.13}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet greenlet==3.5.6 SQLAlchemy==2.1.9 aiosqlite==0.22.1
cd "$work"

cat >count.py <<'EOF'
import asyncio
import resource

from greenlet import getcurrent, greenlet
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

MANY = 2000


def page_faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def faults(switch):
    switch()
    before = page_faults()
    for _ in range(MANY):
        switch()
    return round((page_faults() - before) / MANY)


def nothing():
    pass


def for_ever():
    while True:
        outside.switch()


async def statements():
    engine = create_async_engine("sqlite+aiosqlite://")
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
        before = page_faults()
        for _ in range(MANY):
            await connection.execute(text("SELECT 1"))
        found = (page_faults() - before) / MANY
    await engine.dispose()
    return found


outside = getcurrent()
again = greenlet(for_ever)
print("page faults for each new greenlet:", faults(lambda: greenlet(nothing).switch()))
print("for each switch to one that goes on:", faults(again.switch))
print("for each statement of SQLAlchemy, one or more:", asyncio.run(statements()) >= 1)
EOF

cat >expected <<'EOF'
page faults for each new greenlet: 1
for each switch to one that goes on: 0
for each statement of SQLAlchemy, one or more: True
EOF

venv/bin/python count.py | tee seen
diff expected seen
