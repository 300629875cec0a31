"""One contestant: a process that calls one function as often as it can, when it is told to.

`python -m tests.bench.contestant NAME FUNCTION LOOP` prints a line when it is warm. For each line
"SECONDS CALLERS" it then reads, that many callers make calls for that long, and it prints what they
did as a line of JSON. Between two turns it sleeps; threads, connections and the event loop stay as
they are, as in a server.

BENCH_DATABASE names the database, BENCH_CONNECTIONS says how many connections it may have.
"""

import asyncio
import functools
import gc
import json
import os
import queue
import resource
import statistics
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import django
from django.conf import settings
from django.db import transaction

from tests.bench import Failed
from tests.bench.rows import (
    ANYIO,
    BOUND,
    FREE,
    IDLE,
    KEPT,
    NATIVE,
    OURS,
    PLAIN,
    POOL,
    RAW,
    TASK,
    THREADS,
    TO_THREAD,
)

THREADS = int(os.environ.get("BENCH_CONNECTIONS", THREADS))
# The build before may not know the key.
GREEN = {"GREEN": "all"} if "BENCH_GREEN" in os.environ else {}
#: Seconds to get warm: every connection is to be opened.
WARM = 0.3 if THREADS <= 10 else 1.5
DATABASE = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": os.environ.get("BENCH_DATABASE", "postgres"),
    "HOST": os.environ.get("PGHOST", "127.0.0.1"),
    "PORT": os.environ.get("PGPORT", "5432"),
    "USER": os.environ.get("PGUSER", "postgres"),
    "PASSWORD": os.environ.get("PGPASSWORD", ""),
    "CONN_MAX_AGE": None,
    "OPTIONS": {"sslmode": "disable", "gssencmode": "disable"},
}
# The same server, as psycopg is told of it.
SERVER = {key: DATABASE[key.upper()] for key in ("host", "port", "user", "password")}
# What they have in place of the database's settings above.
OWN = {
    PLAIN: {"CONN_MAX_AGE": 0},
    POOL: {
        "CONN_MAX_AGE": 0,  # Django refuses another value with a pool
        "OPTIONS": {
            **DATABASE["OPTIONS"],
            "pool": {"min_size": min(4, THREADS), "max_size": THREADS, "timeout": 600},
        },
    },
    KEPT: {"CONN_MAX_AGE": 60},
}
OWN[NATIVE] = {**OWN[POOL], "ENGINE": "django_async_backend.db.backends.postgresql"}
# What `startproject` writes into the settings.
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]


def configure(middleware=(), apps=(), **database):
    """Set Django up, with one database."""
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": {**DATABASE, **database}},
        INSTALLED_APPS=[
            "django.contrib.contenttypes",
            "django.contrib.auth",
            "django.contrib.sessions",
            "django.contrib.messages",
            *apps,
        ],
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        MIDDLEWARE=list(middleware),
        # Whoever waits is served in the end, on a slow machine too.
        ORMBRIDGE={"MAX_THREADS": THREADS, "TIMEOUT": 600, **GREEN},
        ROOT_URLCONF="tests.bench.asgi",
        SECRET_KEY="for the benchmark only",
        USE_TZ=True,
    )
    django.setup()


def noop():
    """Do nothing: what remains is the cost of the call."""


def username():
    """Make the query of the guide."""
    from django.contrib.auth.models import User

    return User.objects.all()[0].username


def three():
    """Make it three times in a transaction."""
    with transaction.atomic():
        for _ in range(3):
            name = username()
    return name


async def native_three():
    """Do so on an async connection."""
    from django_async_backend.db.transaction import async_atomic

    async with async_atomic():
        for _ in range(3):
            name = await native_username()
    return name


async def native_username():
    """Make the same query on an async connection."""
    from django.contrib.auth.models import User

    users = [user async for user in User.async_objects.all()[:1]]
    return users[0].username


async def give_back_after(function):
    """Call *function*, and give its connections back to their pool, as after each request."""
    from django_async_backend.db import close_old_async_connections

    try:
        return await function()
    finally:
        await close_old_async_connections()


FUNCTIONS = {"noop": noop, "username": username, "three": three}
NATIVE_FUNCTIONS = {"username": native_username, "three": native_three}


async def iterate(name, limit, busy):
    """Iterate over a table as contestant `name` does; returns how many rows, and that none failed.

    :param busy: seconds that the caller is busy with each 2,000 rows.
    """
    from django.contrib.auth.models import Group

    from ormbridge import stream

    rows = Group.objects.all()[:limit]
    count = 0
    async for _ in stream(rows) if name == OURS else rows.aiterator():
        count += 1
        if busy and count % 2000 == 0:
            await asyncio.sleep(busy)
    return {"calls": count, "failed": 0}


def raw():
    """Return what makes the query on psycopg's async connections, of which a pool has ten."""
    from django.contrib.auth.models import User
    from psycopg_pool import AsyncConnectionPool

    query = User.objects.all()[:1].query.sql_with_params()
    options = {"dbname": DATABASE["NAME"], "autocommit": True, "prepare_threshold": None}
    pool = AsyncConnectionPool(
        kwargs={**SERVER, **options, **DATABASE["OPTIONS"]},
        min_size=THREADS,
        max_size=THREADS,
        timeout=600,
        open=False,
    )

    async def call():
        if pool.closed:
            await pool.open(wait=True)
        async with pool.connection() as connection:
            cursor = await connection.execute(*query)
            return (await cursor.fetchone())[4]

    return call


def wrap(name, function):
    """Return the awaitable form of `function`, as contestant `name` makes it."""
    if function in ("get", "echo"):
        from tests.bench import asgi

        return getattr(asgi, function)(name)
    if name == NATIVE:
        return functools.partial(give_back_after, NATIVE_FUNCTIONS[function])
    if name == RAW:
        return raw()
    function = FUNCTIONS.get(function, function)
    if name == "channels.db":
        from channels.db import database_sync_to_async

        return database_sync_to_async(function)
    if name.startswith("asgiref"):
        from asgiref.sync import sync_to_async

        return sync_to_async(function, thread_sensitive=name != FREE)
    if name == TO_THREAD:
        return functools.partial(asyncio.to_thread, function)
    if name == ANYIO:
        from anyio import CapacityLimiter, to_thread

        return functools.partial(to_thread.run_sync, function, limiter=CapacityLimiter(THREADS))
    from ormbridge import database_sync_to_async

    return database_sync_to_async(function)


async def turn(call, seconds, callers):
    """Let `callers` tasks call, each one call after the other; returns how many calls did well.

    Each makes one call at least, however long it takes to begin with all of them.
    """
    end = time.perf_counter() + seconds

    async def caller():
        made = failed = 0
        while not made + failed or time.perf_counter() < end:
            try:
                await call()
                made += 1
            except Failed:
                failed += 1
        return made, failed

    counts = await asyncio.gather(*(caller() for _ in range(callers)))
    made, failed = map(sum, zip(*counts, strict=True)) if counts else (0, 0)
    return {"calls": made, "failed": failed}


async def tick(late):
    """Note in *late*, for ever, how many milliseconds late a timer of 1 ms is."""
    while True:
        asleep = time.perf_counter()
        await asyncio.sleep(0.001)
        late.append(1000 * (time.perf_counter() - asleep) - 1)


async def delay(call, seconds, callers):
    """Take a turn, and see how late a timer of 1 ms is meanwhile; returns that, too."""
    late = []
    ticking = asyncio.create_task(tick(late))
    if call is None:
        await asyncio.sleep(seconds)
    made = await turn(call, seconds, callers if call else 0)
    ticking.cancel()
    percentiles = statistics.quantiles(late, n=100)
    return {**made, "p50_ms": percentiles[49], "p99_ms": percentiles[98]}


def allocated():
    """Return how many KiB Python has allocated since this was asked first."""
    gc.collect()
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    return tracemalloc.get_traced_memory()[0] / 1024


async def grow(call, count):
    """Let `count` tasks call; returns them, and how many KiB each takes while it waits."""
    before = allocated()
    tasks = [asyncio.ensure_future(call()) for _ in range(count)]
    await asyncio.sleep(0.5)
    return tasks, (allocated() - before) / count


async def waiting(name, _, count):
    """Let `count` calls wait for a thread; returns how many KiB each takes."""
    gate, future = threading.Event(), asyncio.get_running_loop().create_future()

    async def nothing():
        await future

    call = nothing if name == TASK else wrap(name, gate.wait)
    busy, _ = await grow(call, 2 * THREADS)  # so that each thread there is has something to do
    tasks, size = await grow(call, count)
    gate.set()
    future.set_result(None)
    await asyncio.gather(*busy, *tasks)
    return {"calls": count, "failed": 0, "kib": size}


async def idle(name, _, count):
    """Open `count` sockets; returns how many KiB each takes."""
    from tests.bench.asgi import connector

    connect = connector(name)
    sockets = [await connect() for _ in range(2 * THREADS)]
    before = allocated()
    sockets += [await connect() for _ in range(count)]
    size = (allocated() - before) / count
    for serving, *_ in sockets:
        serving.cancel()
    return {"calls": count, "failed": 0, "kib": size}


class Threads:
    """Plain threads that loop over the function, with no event loop: as fast as it can be.

    A connection belongs to its thread, so the threads stay.
    """

    def __init__(self, function):
        self.turns, self.counts = queue.SimpleQueue(), queue.SimpleQueue()
        for _ in range(THREADS):
            threading.Thread(target=self.run, args=(function,), daemon=True).start()

    def run(self, function):
        """Take part in turns; on a thread of its own."""
        while True:
            end, made = self.turns.get(), 0
            while time.perf_counter() < end:
                function()
                made += 1
            self.counts.put(made)

    async def turn(self, seconds, callers):
        """Let as many threads loop for `seconds` as there are callers; none failed."""
        threads = min(THREADS, callers)
        end = time.perf_counter() + seconds
        for _ in range(threads):
            self.turns.put(end)
        return {"calls": sum(self.counts.get() for _ in range(threads)), "failed": 0}


def taker(name, function, extra):
    """Return what takes a turn of so many seconds with so many callers."""
    if name == BOUND:
        return Threads(FUNCTIONS[function]).turn
    if function == "rows":
        limit, busy = extra.split()
        return lambda *_: iterate(name, int(limit), float(busy))
    if function in ("waiting", "idle"):
        return functools.partial({"waiting": waiting, "idle": idle}[function], name)
    if function == "delay":
        return functools.partial(delay, None if name == IDLE else wrap(name, "username"))
    return functools.partial(turn, wrap(name, function))


async def run(name, function):
    """Warm up, then take a turn for each line of standard input, which it blocks on."""
    if name in (TO_THREAD, FREE):
        # By default, it would have as many as there are CPUs, and four more.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    function, _, extra = function.partition(" ")
    take = taker(name, function, extra)
    if function not in ("waiting", "idle"):
        await take(WARM, max(50, THREADS))
    print("warm", flush=True)
    for line in sys.stdin:
        seconds, callers = line.split()
        start, cpu = time.perf_counter(), time.process_time()
        made = await take(float(seconds), int(callers))
        spent = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux has KiB
        print(json.dumps({**made, **spent, "peak_mib": peak}), flush=True)


def main(name, function, loop):
    """Set Django up, and take turns on an event loop."""
    middleware = MIDDLEWARE if function.endswith("startproject") else ()
    configure(middleware, ["django_async_backend"] if name == NATIVE else (), **OWN.get(name, {}))
    if loop == "uvloop":
        from uvloop import new_event_loop as factory
    else:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run(name, function))


if __name__ == "__main__":
    main(*sys.argv[1:])
