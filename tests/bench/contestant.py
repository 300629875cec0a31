"""One contestant: a process that calls one function as often as it can, when it is told to.

`python -m tests.bench.contestant NAME FUNCTION CALLERS LOOP` prints a line when it is warm. For
each number of seconds it then reads, it makes calls for that long and prints what it did as a line
of JSON. Between two turns it sleeps; threads, connections and the event loop stay as they are, as
in a server.
"""

import asyncio
import json
import os
import resource
import sys
import threading
import time

import django
from django.conf import settings

from tests.bench import Failed

THREADS = 10
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
# Plain ASGI as it is run: by default, with Django's pool, and with connections that are kept.
PLAIN, POOL, KEPT = "plain ASGI", "Django's pool", "CONN_MAX_AGE = 60"
# No threads at all: async connections.
NATIVE = "django-async-backend"
# What they have in place of the database's settings above.
OWN = {
    PLAIN: {"CONN_MAX_AGE": 0},
    POOL: {
        "CONN_MAX_AGE": 0,  # Django refuses another value with a pool
        "OPTIONS": {**DATABASE["OPTIONS"], "pool": {"max_size": THREADS}},
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
        ORMBRIDGE={"MAX_THREADS": THREADS},
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


async def native_username():
    """Make the same query on an async connection, and give that back to its pool."""
    from django.contrib.auth.models import User
    from django_async_backend.db import close_old_async_connections

    try:
        users = [user async for user in User.async_objects.all()[:1]]
        return users[0].username
    finally:
        await close_old_async_connections()  # as after each request


FUNCTIONS = {"noop": noop, "username": username}


async def iterate(name, limit, busy):
    """Iterate over a table as contestant `name` does; returns how many rows, and that none failed.

    :param busy: seconds that the caller is busy with each 2,000 rows.
    """
    from django.contrib.auth.models import Group

    from ormbridge import stream

    rows = Group.objects.all()[:limit]
    count = 0
    async for _ in stream(rows) if name == "ormbridge" else rows.aiterator():
        count += 1
        if busy and count % 2000 == 0:
            await asyncio.sleep(busy)
    return count, 0


def wrap(name, function):
    """Return the awaitable form of `function`, as contestant `name` makes it."""
    if function in ("get", "echo"):
        from tests.bench import asgi

        return getattr(asgi, function)(name)
    if name == NATIVE:
        return native_username
    function = FUNCTIONS[function]
    if name == "channels.db":
        from channels.db import database_sync_to_async

        return database_sync_to_async(function)
    if name.startswith("asgiref"):
        from asgiref.sync import sync_to_async

        return sync_to_async(function, thread_sensitive=name == "asgiref")
    from ormbridge import database_sync_to_async

    return database_sync_to_async(function)


async def turn(call, callers, seconds):
    """Let `callers` tasks call, each one call after the other; returns how many calls did well."""
    end = time.perf_counter() + seconds

    async def caller():
        made = failed = 0
        while time.perf_counter() < end:
            try:
                await call()
                made += 1
            except Failed:
                failed += 1
        return made, failed

    counts = await asyncio.gather(*(caller() for _ in range(callers)))
    return [sum(numbers) for numbers in zip(*counts, strict=True)]


def loop_over(function, seconds, counts):
    """Call `function`, with nothing around it."""
    end = time.perf_counter() + seconds
    made = 0
    while time.perf_counter() < end:
        function()
        made += 1
    counts.append(made)


class Bound:
    """Plain threads that loop over the function, with no event loop: as fast as it can be.

    A connection belongs to its thread, so the threads stay; they wait at a barrier between turns.
    """

    def __init__(self, function):
        self.barrier = threading.Barrier(THREADS + 1)
        self.counts = []
        for _ in range(THREADS):
            threading.Thread(target=self.run, args=(function,), daemon=True).start()

    def run(self, function):
        """Take part in every turn; on a thread of its own."""
        while True:
            self.barrier.wait()
            loop_over(function, self.seconds, self.counts)
            self.barrier.wait()

    def turn(self, seconds):
        """Let all threads loop for `seconds`, and return how many calls they made; none failed."""
        self.seconds, self.counts = seconds, []
        self.barrier.wait()
        self.barrier.wait()
        return sum(self.counts), 0


def main(name, function, callers, loop):
    """Warm up, then take a turn for each line of standard input."""
    function, _, extra = function.partition(" ")
    middleware = MIDDLEWARE if extra == "startproject" else ()
    configure(middleware, ["django_async_backend"] if name == NATIVE else (), **OWN.get(name, {}))
    if loop == "uvloop":
        from uvloop import new_event_loop as factory
    else:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        if name == "bound":
            take = Bound(FUNCTIONS[function]).turn
        elif function == "rows":
            limit, busy = extra.split()

            def take(seconds):
                return runner.run(iterate(name.partition(" of ")[0], int(limit), float(busy)))
        else:
            call = wrap(name, function)

            def take(seconds):
                return runner.run(turn(call, int(callers), seconds))

        take(0.3)
        print("warm", flush=True)
        for line in sys.stdin:
            start, cpu = time.perf_counter(), time.process_time()
            calls, failed = take(float(line))
            spent = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # Linux has KiB
            report = {"calls": calls, "failed": failed, **spent, "peak_mib": peak}
            print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
