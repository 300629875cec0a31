"""The page ``guide/connections``: its examples, and the claims it makes."""

import asyncio
import datetime as dt
import importlib
import subprocess
import textwrap
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import pytest
from anyio import to_thread
from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured
from django.db import (
    InterfaceError,
    OperationalError,
    close_old_connections,
    connection,
    connections,
)
from django.db.backends.signals import connection_created
from django.http import HttpResponse
from django.urls import path

from ormbridge import BridgeMiddleware, database_sync_to_async, pinned, stats
from tests.core.support import run, until
from tests.guide.conftest import INITDB, own_server, run_python
from tests.settings import CHOICE, DATABASES
from tests.support.canceller import in_context
from tests.support.examples import example_source
from tests.support.http import get
from tests.support.timeline import Timeline

# Nothing here writes a row: with no app available there is no table to empty after each test.
pytestmark = pytest.mark.django_db(
    transaction=True, databases=["default", "other"], available_apps=[]
)


@contextmanager
def noting_connections():
    """Return a list that every connection comes into when it is made."""
    opened = []

    def note(connection, **kwargs):
        opened.append(connection.connection)

    connection_created.connect(note)
    try:
        yield opened
    finally:
        connection_created.disconnect(note)


def ask(sql):
    """Run *sql* on the calling thread's connection; return the one value that it answers."""
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


@pytest.fixture
def serve(settings):
    """Return a function that makes an application of a URLconf, with the middleware."""

    def make(urlconf):
        settings.ROOT_URLCONF = urlconf
        settings.ALLOWED_HOSTS = ["*"]
        return BridgeMiddleware(get_asgi_application())

    return make


async def no_worker_is_leased():
    await until(lambda: stats().idle == stats().threads)


# How many there are.


def test_requests(run_script, recorded):
    """Without the middleware a hundred requests leave a hundred connections open, with it five."""
    recorded("connections/per_request", run_script(example_source("connections/per_request")))


async def test_two_workers(serve, load_example, pool_settings, recorded, recorded_timeline):
    """Six requests at once share two workers, and the two connections that these keep."""
    pool_settings(MAX_THREADS=2)
    module = load_example("connections/two_workers")
    timeline = Timeline()
    timeline.watch(module, "query")
    # What the worker is held for in between is tested with the middleware.
    application = timeline.application(serve(module), holds=True)
    answers = await asyncio.gather(*[get(application) for _ in range(6)])
    recorded("connections/two_workers", "\n".join(answers))
    # Which requests run side by side, and for how long, is up to the machine.
    recorded_timeline("connections/two_workers", timeline, overlaps=False)


async def test_request_connects_once_at_conn_max_age_zero(serve, connection_settings):
    """At ``CONN_MAX_AGE = 0`` a request opens one connection for all its calls, and closes it."""
    connection_settings(CONN_MAX_AGE=0)
    seen = []

    async def view(request):
        for _ in range(3):
            await sync_to_async(ask)("SELECT 42")
            seen.append(await sync_to_async(lambda: connection.connection)())
        return HttpResponse()

    application = serve((path("", view),))
    with noting_connections() as opened:
        for _ in range(2):
            assert await get(application) == "200"
            await no_worker_is_leased()
    assert opened == [seen[0], seen[3]]
    assert seen == [seen[0]] * 3 + [seen[3]] * 3
    assert await database_sync_to_async(lambda: connection.connection)() is None


async def test_without_middleware_at_conn_max_age_zero(settings, connection_settings):
    """Without the middleware, at ``CONN_MAX_AGE = 0``, a request closes its connection, too."""
    connection_settings(CONN_MAX_AGE=0)
    seen = []

    def view(request):
        ask("SELECT 42")
        seen.append(connections["default"])
        return HttpResponse()

    settings.ROOT_URLCONF = (path("", view),)
    settings.ALLOWED_HOSTS = ["*"]
    assert await get(get_asgi_application()) == "200"
    (own,) = seen
    assert own.connection is None


async def test_one_connection_for_each_alias(pool_settings):
    """A worker has one connection for each alias that its calls used."""
    pool_settings(MAX_THREADS=1)

    def use(*aliases):
        for alias in aliases:
            connections[alias].ensure_connection()

    with noting_connections() as opened:
        await database_sync_to_async(use)("default")
        assert len(opened) == 1
        await database_sync_to_async(use)("default", "other")
        await database_sync_to_async(use)("default", "other")
        assert len(opened) == 2


# Stale connections.

KILL = {
    "postgresql": (
        "SELECT pg_backend_pid()",
        "SELECT pg_terminate_backend({})",
        "terminating connection due to administrator command",
    ),
    "mariadb": ("SELECT connection_id()", "KILL {}", "Lost connection to|erver has gone away"),
}

if CHOICE in KILL:  # SQLite has no server that could close a connection
    WHO_AM_I, KILL_IT, WHAT_IS_SAID = KILL[CHOICE]

    async def kill_connection_of_worker():
        """Let the server close the connection that the only worker has."""
        session = await database_sync_to_async(ask)(WHO_AM_I)
        # Another worker would do too, but the bound of these tests is one.
        await asyncio.to_thread(ask_and_close, KILL_IT.format(session))
        return session

    def ask_and_close(sql):
        try:
            return ask(sql)
        finally:
            connection.close()

    async def test_connection_that_the_server_closed_costs_one_call(pool_settings):
        """Without health checks the next call fails, and the one after it has a new connection."""
        pool_settings(MAX_THREADS=1)
        before = await kill_connection_of_worker()
        with pytest.raises(OperationalError, match=WHAT_IS_SAID):
            await database_sync_to_async(ask)(WHO_AM_I)
        assert await database_sync_to_async(ask)(WHO_AM_I) != before

    async def test_health_check_spares_that_call(pool_settings, connection_settings):
        """With ``CONN_HEALTH_CHECKS`` the next call has a new connection."""
        pool_settings(MAX_THREADS=1)
        connection_settings(CONN_HEALTH_CHECKS=True)
        before = await kill_connection_of_worker()
        assert await database_sync_to_async(ask)(WHO_AM_I) != before

    @pytest.mark.parametrize("hold", [pinned, partial(in_context, holds=True)])
    async def test_health_check_comes_once_for_what_holds_a_worker(
        pool_settings, connection_settings, hold
    ):
        """A request or pinned() tries its connection at the first call, and at no later one."""
        pool_settings(MAX_THREADS=1)
        connection_settings(CONN_HEALTH_CHECKS=True)
        before = await kill_connection_of_worker()
        async with hold():
            assert await database_sync_to_async(ask)(WHO_AM_I) != before
            await kill_connection_of_worker()
            with pytest.raises(OperationalError, match=WHAT_IS_SAID):
                await database_sync_to_async(ask)(WHO_AM_I)
            await database_sync_to_async(ask)(WHO_AM_I)

    async def test_thread_of_anyio_keeps_a_dead_connection():
        """On a thread of anyio all calls fail, until one of them closes old connections."""
        before = await to_thread.run_sync(ask, WHO_AM_I)
        await asyncio.to_thread(ask_and_close, KILL_IT.format(before))
        for _ in range(3):
            with pytest.raises((OperationalError, InterfaceError)):
                await to_thread.run_sync(ask, WHO_AM_I)
        await to_thread.run_sync(close_old_connections)
        assert await to_thread.run_sync(ask_and_close, WHO_AM_I) != before


# The room on the server.

if CHOICE == "postgresql":
    SERVER = {
        "PGHOST": DATABASES["default"]["HOST"],
        "PGPORT": DATABASES["default"]["PORT"],
        "PGUSER": DATABASES["default"]["USER"],
        "PGPASSWORD": DATABASES["default"]["PASSWORD"],
    }

    def test_default_max_connections():
        """PostgreSQL takes 100 connections by default, and keeps 3 of them for superusers."""
        sql = "SELECT boot_val FROM pg_settings WHERE name = '{}'"
        assert ask(sql.format("max_connections")) == "100"
        assert ask(sql.format("superuser_reserved_connections")) == "3"


if CHOICE == "mariadb":

    def test_default_max_connections_of_mariadb():
        """MariaDB takes 151 connections by default."""
        assert (
            ask(
                "SELECT default_value FROM information_schema.system_variables "
                "WHERE variable_name = 'max_connections'"
            )
            == "151"
        )


if INITDB is not None:  # the tests' own server is nobody's to fill up

    @pytest.fixture
    def small_server():
        """Start a PostgreSQL of 6 connections, 3 of them reserved; return its directory."""
        with own_server("-c max_connections=6") as directory:
            yield directory

    def test_too_many_clients(run_script, recorded, small_server):
        """More threads than the server has room for: some calls cannot connect."""
        source = example_source("connections/too_many")
        output = run_script(source, PGHOST=small_server, PGUSER="postgres")
        recorded("connections/too_many", output.replace(small_server, "/var/run/postgresql"))

    def test_enough_room_for_clients(run_script):
        """On a server that has room for them all, the example says so."""
        output = run_script(example_source("connections/too_many"), **SERVER)
        assert output == (
            "10 connected, 0 did not\nThis server has room for all of them: try more threads.\n"
        )

    def test_reserved_slots(run_script, small_server):
        """Who is no superuser cannot have the last three connections."""
        script = """
            import psycopg

            with psycopg.connect(dbname="postgres", autocommit=True) as server:
                server.execute("CREATE ROLE app LOGIN")
                held = [psycopg.connect(dbname="postgres", user="app") for _ in range(2)]
                try:
                    psycopg.connect(dbname="postgres", user="app")
                except psycopg.OperationalError as error:
                    print(error)
                psycopg.connect(dbname="postgres").close()
                for connection in held:
                    connection.close()
        """
        # One after the other: the server counts whom it is about to refuse, too.
        output = run_script(textwrap.dedent(script), PGHOST=small_server, PGUSER="postgres")
        assert "FATAL:  remaining connection slots are reserved for " in output


# psycopg's pool.

if CHOICE == "postgresql":

    def test_psycopg_pool(run_script, recorded):
        """With as many connections in psycopg's pool as there are workers, all calls run."""
        output = run_script(example_source("connections/with_psycopg_pool"), **SERVER)
        recorded("connections/with_psycopg_pool", output)

    def test_psycopg_pool_too_small(run_script, recorded):
        """With fewer connections than workers, a call gives up in psycopg's pool."""
        output = run_script(example_source("connections/pool_too_small"), **SERVER)
        recorded("connections/pool_too_small", output)

    @pytest.mark.parametrize(
        ("before", "environment", "expected"),
        [
            (
                "import sys; sys.modules['psycopg_pool'] = None\n",
                SERVER,
                "Error loading psycopg_pool",
            ),
            ("", {**SERVER, "PGPORT": "1"}, "couldn't get a connection"),
        ],
        ids=["without-the-pool", "without-a-server"],
    )
    def test_psycopg_pool_that_cannot_connect(tmp_path, before, environment, expected):
        """Where nobody can have a connection, the example ends with the reason."""
        source = before + example_source("connections/pool_too_small")
        finished = run_python(tmp_path, source, stderr=subprocess.STDOUT, **SERVER | environment)
        assert (finished.returncode, expected in finished.stdout) == (1, True), finished.stdout

    def test_defaults_of_psycopg_pool():
        """psycopg's pool has 4 connections by default; who wants one waits 30 seconds."""
        from psycopg_pool import ConnectionPool

        pool = ConnectionPool(open=False)
        assert (pool.max_size, pool.timeout) == (4, 30.0)

    def test_psycopg_pool_refuses_conn_max_age(connection_settings):
        """Django refuses psycopg's pool together with a ``CONN_MAX_AGE`` other than 0."""
        own = connection.copy()
        own.settings_dict["OPTIONS"] = {"pool": True}
        with pytest.raises(ImproperlyConfigured, match="Pooling doesn't support persistent"):
            own.pool  # noqa: B018 - reading it makes the pool

    def test_pooled_connection_goes_back_after_each_call(run_script):
        """With psycopg's pool a worker has a connection only while it runs a call."""
        source = example_source("connections/with_psycopg_pool").replace(
            "    connection.close_pool()",
            "    found = connection.pool.get_stats()\n"
            "    print(found['pool_size'], found['pool_available'])\n"
            "    connection.close_pool()",
        )
        last = run_script(source, **SERVER).splitlines()[-1]
        assert last == "3 3"

    def test_thread_that_ends_keeps_its_place_in_psycopg_pool(run_script, recorded):
        """A thread that is no worker takes its connection with it, unless it closes it."""
        output = run_script(example_source("connections/to_thread"), **SERVER)
        recorded("connections/to_thread", output)

    def test_others_share_psycopg_pool(run_script):
        """Threads that are no workers take their connections from the same pool of psycopg."""
        source = example_source("connections/pool_too_small").replace(
            "@database_sync_to_async\ndef write_report", "def write_report"
        )
        source = source.replace("write_report()", "asyncio.to_thread(write_report)", 2)
        source = source.replace("def asyncio.to_thread(write_report)", "def write_report()")
        source = source.replace("    may_end.wait()", "    may_end.wait()\n    connection.close()")
        assert "to_thread(write_report)" in source
        assert run_script(source, **SERVER) == run_script(
            example_source("connections/pool_too_small"), **SERVER
        )


if CHOICE == "mariadb":
    PYMYSQL = """
import asyncio
import django
import pymysql
from django.conf import settings

pymysql.install_as_MySQLdb()
settings.configure(DATABASES={{"default": {}}}, ORMBRIDGE={{"MAX_THREADS": 3}})
django.setup()
from django.db import connection
from ormbridge import atomic, database_sync_to_async

def ask():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        return type(connection.connection).__module__, cursor.fetchone()[0]

async def main():
    print(set(await asyncio.gather(*[database_sync_to_async(ask)() for _ in range(9)])))
    async with atomic():
        print(await database_sync_to_async(ask)())

asyncio.run(main())
"""

    def test_pymysql(run_script):
        """With PyMySQL in the place of mysqlclient calls and blocks run as well."""
        default = {**DATABASES["default"], "NAME": "mysql"}
        output = run_script(PYMYSQL.format(default))
        assert output == "{('pymysql.connections', 42)}\n('pymysql.connections', 42)\n"


# What a session remembers.

RESET_IN_A_POOL = """
import asyncio, django
from django.conf import settings
from django.db import connection
from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "TIME_ZONE": "Pacific/Kiritimati",
            "OPTIONS": {"pool": {"min_size": 1, "max_size": 1}},
        }
    },
    ORMBRIDGE={"MAX_THREADS": 1, "RESET": "__main__.reset_session"},
)
django.setup()

@database_sync_to_async
def ask(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None

async def main():
    await ask("SET search_path TO blue; SET TIME ZONE 'Asia/Tokyo'")
    print(await ask("SHOW search_path"))
    print(await ask("SHOW TIME ZONE"))

asyncio.run(main())
connection.close_pool()
"""

#: What to set, and a question whose answer it changes.
STATE = {
    "postgresql": {
        "schema": ("SET search_path TO blue", "SHOW search_path"),
        "role": ("SET ROLE pg_monitor", "SELECT current_user"),
        "authorization": ("SET SESSION AUTHORIZATION pg_monitor", "SELECT session_user"),
        "setting": (
            "SET app.tenant = 'blue'",
            "SELECT nullif(current_setting('app.tenant', true), '')",
        ),
        "time zone": ("SET TIME ZONE 'Asia/Tokyo'", "SHOW TIME ZONE"),
        "advisory lock": (
            "SELECT pg_advisory_lock(7)",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
        ),
        "temporary table": ("CREATE TEMP TABLE note (id int)", "SELECT to_regclass('note')::text"),
        "listening": ("LISTEN news", "SELECT count(*) FROM pg_listening_channels()"),
        "cursor": (
            "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
            "SELECT count(*) FROM pg_cursors WHERE name = 'held'",
        ),
    },
    "mariadb": {
        "variable": ("SET @tenant = 'blue'", "SELECT @tenant"),
        "lock": ("SELECT get_lock('ormbridge', 0)", "SELECT is_used_lock('ormbridge')"),
        "time zone": ("SET time_zone = '+09:00'", "SELECT @@time_zone"),
    },
    "sqlite": {
        "temporary table": (
            "CREATE TEMP TABLE note (id int)",
            "SELECT count(*) FROM temp.sqlite_master",
        ),
        "pragma": ("PRAGMA query_only = 1", "PRAGMA query_only"),
    },
}[CHOICE]
RESETS = ["reset_by_closing"] + ["reset"] * (CHOICE == "postgresql")
RESET = "examples.connections.reset.reset_session"


@pytest.fixture(params=STATE)
def state(request):
    """Name what a call sets: how to set it, and how to see it."""
    return STATE[request.param]


async def answers_around(state):
    """Return what is answered before a call has set *state*, and to the next call after it."""
    do, question = state
    before = await database_sync_to_async(ask)(question)
    await database_sync_to_async(ask)(do)
    return before, await database_sync_to_async(ask)(question)


async def test_session_state_reaches_the_next_call(state, pool_settings):
    """What a call sets on its connection is there for the next call on the same worker."""
    pool_settings(MAX_THREADS=1)
    before, after = await answers_around(state)
    assert before != after


@pytest.mark.parametrize("name", RESETS)
async def test_reset_clears_session_state(state, name, pool_settings):
    """With the example's RESET the next call sees nothing of it."""
    pool_settings(MAX_THREADS=1, RESET=f"examples.connections.{name}.reset_session")
    before, after = await answers_around(state)
    assert after == before
    assert stats().discarded == 0


async def ask_twice(application):
    """Return the answers to a request for a tenant, and to one for no tenant after it."""
    answers = []
    for address in ("/blue/", "/"):
        answers.append(f"GET {address:6} {await get(application, address)}")
        await no_worker_is_leased()  # or a busy machine would lend the next one another
    return "\n".join(answers)


@pytest.mark.parametrize("place", ["thread", "object"])
async def test_reset_clears_thread_and_object(place, serve, pool_settings, recorded):
    """What a request leaves on its thread, or Django's object, is there without RESET alone."""
    # Not a copy of it: RESET has to clear what the views use.
    application = serve(importlib.import_module(f"examples.connections.reset_{place}"))
    pool_settings(MAX_THREADS=1)
    without = await ask_twice(application)
    pool_settings(MAX_THREADS=1, RESET=f"examples.connections.reset_{place}.reset_{place}")
    output = f"without RESET:\n{without}\n\nwith RESET:\n{await ask_twice(application)}"
    recorded(f"connections/reset_{place}", output)


@pytest.mark.parametrize(
    ("age", "reset"), [(0, None), (60, "examples.connections.reset_by_closing.reset_session")]
)
async def test_djangos_object_ends_with_its_connection(
    age, reset, pool_settings, connection_settings
):
    """Where the connection is closed, by its age or by RESET, what was on Django's object goes."""
    pool_settings(MAX_THREADS=1, RESET=reset)
    connection_settings(CONN_MAX_AGE=age)

    def leave():
        connection.tenant = "blue"
        ask("SELECT 42")
        return hasattr(connection, "tenant")

    assert await database_sync_to_async(leave)()
    assert not await database_sync_to_async(lambda: hasattr(connection, "tenant"))()


seen_by_reset = []


def reset_that_asks_first(connection):
    ask_on(connection)
    seen_by_reset.append("the thread is cleared")


def reset_that_asks_last(connection):
    seen_by_reset.append("the thread is cleared")
    ask_on(connection)


def ask_on(connection):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")


async def test_statement_on_a_connection_that_is_not_open_ends_reset(pool_settings, monkeypatch):
    """What comes after the first statement of RESET is not done where no connection is open."""
    monkeypatch.delitem(connections.settings, "other")
    pool_settings(MAX_THREADS=1, RESET=f"{__name__}.reset_that_asks_first")
    seen_by_reset.clear()
    await database_sync_to_async(len)("")
    assert seen_by_reset == []
    pool_settings(MAX_THREADS=1, RESET=f"{__name__}.reset_that_asks_last")
    await database_sync_to_async(len)("")
    assert seen_by_reset == ["the thread is cleared"]


def test_wrapper_of_the_main_thread_sees_no_call():
    """What ready() puts on django.db.connection is on the connection of its own thread."""
    seen = []

    def guard(execute, sql, *args):
        seen.append(sql)
        return execute(sql, *args)

    with connection.execute_wrapper(guard):
        assert asyncio.run(database_sync_to_async(ask)("SELECT 42")) == 42
        assert seen == []
        assert ask("SELECT 42") == 42
        assert seen[-1:] == ["SELECT 42"]


resets = []


def reset(held):
    resets.append(held)


async def test_no_reset_on_threads_that_are_no_workers(pool_settings):
    """RESET does not run on threads of asyncio, of an executor, or of asgiref."""
    pool_settings(RESET=f"{__name__}.reset")
    await asyncio.to_thread(len, "")
    await sync_to_async(len, thread_sensitive=False)("")
    await sync_to_async(len)("")
    await database_sync_to_async(len, thread_sensitive=True)("")
    with ThreadPoolExecutor(1) as executor:
        await database_sync_to_async(len, thread_sensitive=False, executor=executor)("")
    assert resets == []
    assert stats().threads == 0


async def test_reset_by_closing(pool_settings, recorded):
    """A RESET that closes the connection costs a new one for each lease."""
    pool_settings(MAX_THREADS=1, RESET="examples.connections.reset_by_closing.reset_session")
    with noting_connections() as opened:
        for _ in range(3):
            await database_sync_to_async(ask)("SELECT 42")
    assert len(opened) == 3
    recorded("connections/reset_by_closing", "")


if CHOICE == "postgresql":

    async def test_tenant_leaks(serve, load_example, pool_settings, recorded):
        """Without RESET a request sees the tables of another request's tenant."""
        pool_settings(MAX_THREADS=1)
        application = serve(load_example("connections/tenant"))
        recorded("connections/tenant", await ask_twice(application))

    async def test_tenant_does_not_leak(serve, load_example, pool_settings, recorded):
        """With RESET a request sees nothing of another request's tenant."""
        pool_settings(MAX_THREADS=1, RESET=RESET)
        application = serve(load_example("connections/tenant"))
        recorded("connections/reset", await ask_twice(application))

    async def test_tenant_stays_through_a_request(serve, pool_settings):
        """State that a request sets stays with it to its end, whatever runs in between."""
        pool_settings(MAX_THREADS=2, RESET=RESET)

        async def view(request, tenant):
            await sync_to_async(ask)(f"SET search_path TO {tenant}")
            await asyncio.sleep(0)
            return HttpResponse(await sync_to_async(ask)("SHOW search_path"))

        application = serve((path("<tenant>/", view),))
        names = [f"tenant_{number}" for number in range(20)]
        answers = await asyncio.gather(*[get(application, f"/{name}/") for name in names])
        assert answers == [f"200 {name}" for name in names]

    async def test_time_zone_of_a_session(pool_settings):
        """After SET TIME ZONE others read another hour, labelled UTC; with RESET they do not."""
        noon = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)
        read = []

        def now_and_here():
            with connection.cursor() as cursor:
                cursor.execute("SELECT %s::timestamptz", [noon])
                return cursor.fetchone()[0].isoformat()

        for reset in [None, RESET]:
            pool_settings(MAX_THREADS=1, RESET=reset)
            await database_sync_to_async(ask)("SET TIME ZONE 'Asia/Tokyo'")
            read.append(await database_sync_to_async(now_and_here)())
        assert read == ["2030-01-01T21:00:00+00:00", "2030-01-01T12:00:00+00:00"]

    async def test_reset_undoes_what_a_receiver_set(pool_settings, connection_settings):
        """RESET ALL goes back to what OPTIONS say, and not to what a receiver has set."""

        def set_timeout(connection, **kwargs):
            connection.cursor().execute("SET statement_timeout = '5s'")

        pool_settings(MAX_THREADS=1, RESET=RESET)
        connection_settings(OPTIONS={"options": "-c search_path=blue"})
        connection_created.connect(set_timeout)
        try:
            seen = [
                await database_sync_to_async(ask)(f"SHOW {name}")
                for name in ["statement_timeout", "search_path"] * 2
            ]
        finally:
            connection_created.disconnect(set_timeout)
        assert seen == ["5s", "blue", "0", "blue"]

    async def test_reset_keeps_the_connection(pool_settings):
        """The example's RESET does not cost a new connection."""
        pool_settings(MAX_THREADS=1, RESET=RESET)
        first = await database_sync_to_async(ask)(WHO_AM_I)
        assert await database_sync_to_async(ask)(WHO_AM_I) == first

    async def test_reset_forgets_sequences(pool_settings):
        """The last value that a sequence gave out is gone after the example's RESET."""
        pool_settings(MAX_THREADS=1, RESET=RESET)
        draw = "SELECT nextval('django_migrations_id_seq') = lastval()"
        assert await database_sync_to_async(ask)(draw)
        with pytest.raises(OperationalError, match="lastval is not yet defined"):
            await database_sync_to_async(ask)("SELECT lastval()")

    def test_reset_with_psycopg_pool(run_script):
        """The example's RESET does the same for a connection of psycopg's pool."""
        assert run_script(example_source("connections/reset") + RESET_IN_A_POOL, **SERVER) == (
            '"$user", public\nPacific/Kiritimati\n'
        )

    async def test_reset_restores_what_django_set(pool_settings, connection_settings):
        """Django's time zone and ``assume_role`` are in force after the example's RESET."""
        pool_settings(MAX_THREADS=1, RESET=RESET)
        connection_settings(
            TIME_ZONE="Pacific/Kiritimati", OPTIONS={"assume_role": "pg_read_all_data"}
        )
        for _ in range(2):
            zone = await database_sync_to_async(ask)("SHOW TIME ZONE")
            role = await database_sync_to_async(ask)("SELECT current_user")
            assert (zone, role) == ("Pacific/Kiritimati", "pg_read_all_data")

    async def test_reset_keeps_prepared_statements(pool_settings, connection_settings):
        """What psycopg has prepared is there after the example's RESET."""
        pool_settings(MAX_THREADS=1, RESET=RESET)
        connection_settings(OPTIONS={"server_side_binding": True, "prepare_threshold": 0})
        question = "SELECT string_agg(statement, ';') FROM pg_prepared_statements"
        prepared = [await database_sync_to_async(ask)(question) for _ in range(3)]
        assert question in prepared[1]
        assert prepared[1] == prepared[2]
        assert stats().discarded == 0

    async def test_discard_all_loses_what_django_set(pool_settings, connection_settings):
        """``DISCARD ALL`` drops the time zone that Django set, and prepared statements."""
        pool_settings(MAX_THREADS=1)
        connection_settings(TIME_ZONE="Pacific/Kiritimati")
        await database_sync_to_async(ask)("PREPARE mine AS SELECT 1")
        await database_sync_to_async(ask)("DISCARD ALL")
        assert await database_sync_to_async(ask)("SHOW TIME ZONE") != "Pacific/Kiritimati"
        question = "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'"
        assert await database_sync_to_async(ask)(question) == 0


FORKED = """
def session():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return cursor.fetchone()[0]

def session_of_a_child():
    child = os.fork()
    if not child:
        os._exit(session() != own)
    return "another" if os.waitpid(child, 0)[1] else "its parent's"

own = session()
print(session_of_a_child())
connections.close_all()
print(session_of_a_child())
"""

if CHOICE == "postgresql":

    def test_connection_from_before_the_fork():
        """A forked process has the connection of its parent, unless that was closed before."""
        result = run(f"from django.db import connections\n{FORKED}")
        assert (result.stdout, result.stderr) == ("its parent's\nanother\n", "")
