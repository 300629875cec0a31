"""What is measured: the rows, who takes part in each, and what ormbridge is to reach."""

from importlib.util import find_spec

THREADS = 10
QUERY = "User.objects.all()[0].username"
# Plain ASGI as it is run: by default, with Django's pool, and with connections that are kept.
PLAIN, POOL, KEPT = "plain ASGI", "Django's pool", "CONN_MAX_AGE = 60"
# No threads at all: async connections, with the ORM and without.
NATIVE, RAW = "django-async-backend", "psycopg, no ORM"
# Threads that loop over the query, with no event loop.
BOUND = "plain threads"
TO_THREAD, ANYIO, FREE = "asyncio.to_thread", "anyio", "asgiref, not thread-sensitive"
#: The package of the directory that `--against` names.
BEFORE = "the build before"
#: ormbridge, with all of its functions on the event loop's thread.
GREEN = "ormbridge, green"
# It needs Python 3.12; without it, its rows are shorter.
NATIVES = [NATIVE] if find_spec("django_async_backend") else []
OURS, CHANNELS = "ormbridge", "channels.db"
IDLE, TASK, BARE, SOCKETS = "an idle loop", "a task, no call", "bare await", "plain Channels"
DJANGO = "aiterator()"
GROWTH = [OURS, BOUND, CHANNELS, *NATIVES]
WITH_GREEN = [OURS, GREEN, *GROWTH[1:]]
#: By how many callers and connections, and with how many milliseconds of latency.
CALLERS = (1, 2, 5, 10, 20, 50, 1000, 10_000)
CONNECTIONS = (1, 2, 5, 10, 20, 50, 100)
LATENCIES = (0, 1, 5, 50)

# What is called ("function"), by how many callers, by whom; the ratios that ormbridge is to reach
# ("reach"; "green" on the event loop's thread), and the figures that it may have at most ("most",
# "green most"), less what it is without the bridge ("without").
# How much longer a turn is where calls are slow, and how many rounds a set of processes has, if
# that is fewer than for the others. Rows that call the same function share their processes, but for
# those that are apart; where they are fresh, each turn has a process of its own. What is counted
# ("unit"), if it is not calls.
ROWS = {
    "noop": {
        "title": "A call that does nothing, 50 callers",
        "function": "noop",
        "callers": 50,
        "contestants": [OURS, GREEN, CHANNELS, "asgiref", FREE, TO_THREAD, ANYIO],
        "reach": {CHANNELS: 2.5},
    },
    "one": {
        "title": "A call that does nothing, one caller",
        "function": "noop",
        "callers": 1,
        "contestants": [OURS, GREEN, CHANNELS, "asgiref", FREE, TO_THREAD, ANYIO],
        "reach": {CHANNELS: 1.0},
    },
    "orm": {
        "title": f"{QUERY}, 50 callers, {THREADS} connections",
        "function": "username",
        "latency": 0,
        "callers": 50,
        "contestants": [*WITH_GREEN, "asgiref", FREE, TO_THREAD, ANYIO, RAW],
        "reach": {BOUND: 1.0, CHANNELS: 1.25},
        "green": {OURS: 1.0, BEFORE: 1.6, NATIVE: 1.25},
        "apart": True,
    },
    "three": {
        "title": "A transaction of three such queries, 50 callers",
        "function": "three",
        "callers": 50,
        "contestants": WITH_GREEN,
        "reach": {},
        "green": {NATIVE: 1.1},
    },
    **{
        f"orm-{callers}": {
            "title": f"The query, {callers:,} caller{'s' * (callers > 1)}",
            "function": "username",
            "callers": callers,
            "contestants": WITH_GREEN if callers <= 20 else GROWTH,
            "reach": {CHANNELS: 1.05 if callers < 5 else 1.25},
            # With as many callers as threads, each of those had all to itself.
            "green": {
                **({NATIVE: 1.1} if callers <= 20 else {}),
                **({BEFORE: 2.0} if callers == THREADS else {}),
            },
            "longer": 2 / 3,
            # Each turn lasts until all are served, which is several seconds.
            **({"apart": True, "rounds": 1} if callers == max(CALLERS) else {}),
        }
        for callers in CALLERS
        if callers != 50  # the row before
    },
    **{
        f"latency-{delay}": {
            "title": f"The query, 50 callers, {delay} ms of latency added",
            "function": "username",
            "latency": delay,
            "callers": 50,
            "contestants": WITH_GREEN if delay == 5 else GROWTH,
            "reach": {BOUND: 0.9, CHANNELS: 5.2, BEFORE: 0.97} if delay == 5 else {},
            "green": {BEFORE: 0.97, NATIVE: 1.05} if delay == 5 else {},
            **({"longer": 3, "rounds": 2} if delay == max(LATENCIES) else {}),
        }
        for delay in LATENCIES
        if delay
    },
    **{
        f"connections-{connections}": {
            "title": "The query, 200 callers, 5 ms of latency added",
            "function": "username",
            "latency": 5,
            "connections": connections,
            "callers": 200,
            "contestants": [OURS, BOUND, *NATIVES],
            "reach": {},
            "rounds": 1,
            # A server has no connections for all of them at once.
            "fresh": True,
        }
        for connections in CONNECTIONS
    },
    "http": {
        "title": "A request that makes one query, 50 clients",
        "function": "get",
        "callers": 50,
        "contestants": [OURS, GREEN, PLAIN, POOL],
        "reach": {POOL: 2.2, BEFORE: 1.25},
        "green": {POOL: 3.0, BEFORE: 1.7},
        "unit": "request",
        "longer": 3,
    },
    "startproject": {
        "title": "The same with the middleware that startproject writes down",
        "function": "get startproject",
        "callers": 50,
        "contestants": [OURS, GREEN, PLAIN, POOL],
        "reach": {},
        "unit": "request",
        "longer": 3,
    },
    "persistent": {
        "title": "A request, connections kept without the bridge",
        "function": "get",
        "callers": 50,
        # Alone: it leaves no connection to the others.
        "contestants": [KEPT],
        "reach": {},
        "unit": "request",
        "longer": 3,
        "apart": True,
    },
    "websocket": {
        "title": "A message that needs no database, one socket",
        "function": "echo",
        "callers": 1,
        "contestants": [OURS, BARE, SOCKETS],
        "reach": {BARE: 0.83},
        "unit": "message",
    },
    "websockets": {
        "title": "A message that needs no database, 50 sockets",
        "function": "echo",
        "callers": 50,
        "contestants": [OURS, BARE, SOCKETS],
        "reach": {BARE: 0.83},
        "unit": "message",
    },
    "rows": {
        "title": "A million rows, one after the other",
        "function": "rows 1000000 0",
        "callers": 1,
        "contestants": [OURS, DJANGO],
        "reach": {DJANGO: 1.0},
        # A turn is as long as the table, however many seconds it was to take.
        "rounds": 2,
        "unit": "row",
    },
    "busy": {
        "title": "100,000 rows, of which each 2,000 keep the caller busy for 5 ms",
        "function": "rows 100000 0.005",
        "callers": 1,
        "contestants": [OURS, DJANGO],
        "reach": {},
        "unit": "row",
    },
    "delay": {
        "title": "How late the loop is while 50 callers make the query",
        "function": "delay",
        "callers": 50,
        "contestants": [OURS, GREEN, CHANNELS, *NATIVES, IDLE],
        "reach": {},
        "most": {"p99_ms": 4.0},
        "green most": {"p99_ms": 2.5},
        "longer": 2,
    },
    "waiting": {
        "title": "Memory of a call that waits, of 10,000",
        "function": "waiting",
        "callers": 10_000,
        "contestants": [OURS, CHANNELS, TO_THREAD, ANYIO, TASK],
        "reach": {},
        "most": {"kib": 2.2},
        "rounds": 1,
        "fresh": True,
    },
    "idle": {
        "title": "Memory of a socket that is open and idle, of 10,000",
        "function": "idle",
        "callers": 10_000,
        "contestants": [OURS, SOCKETS],
        "reach": {},
        "most": {"kib": 2.3},
        "without": SOCKETS,
        "rounds": 1,
        "fresh": True,
    },
}


def asks_database(row):
    """Say whether *row* needs a database."""
    return row["function"] not in ("noop", "echo", "waiting", "idle")
