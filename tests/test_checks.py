"""``manage.py check``: a warning for each setting that hurts, and silence once it is put right."""

import functools
import sys
import types
from pathlib import Path
from textwrap import dedent

import pytest
from channels.auth import AuthMiddlewareStack
from channels.middleware import BaseMiddleware
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from channels.sessions import CookieMiddleware
from django.contrib.auth.models import User
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.checks import run_checks
from django.core.handlers.asgi import ASGIHandler
from django.db import connection, connections, transaction
from django.db.utils import ConnectionHandler
from django.http import HttpResponse
from django.test import AsyncClient
from django.urls import include, path, re_path
from django.utils.functional import SimpleLazyObject
from django.views import View

from ormbridge import BridgeMiddleware, atomic, checks, database_sync_to_async, stats
from tests.processes import run_python
from tests.settings import CHOICE

# The checks read settings only: no driver is needed to talk about a database.
POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "CONN_MAX_AGE": 60}
SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": "project.sqlite3"}


@pytest.fixture
def check(monkeypatch):
    """Return a function that tells what the checks say of one database's settings."""

    def check(**database):
        monkeypatch.setattr(checks, "connections", ConnectionHandler({"default": database}))
        return [str(message) for message in run_checks(tags=["ormbridge"])]

    return check


@pytest.fixture
def asgi(monkeypatch):
    """Return a function that makes ``<package>.asgi`` with an application."""

    def make(application, package="project"):
        module = types.ModuleType(f"{package}.asgi")
        module.application = application
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return make


@pytest.fixture(autouse=True)
def without_the_variable(monkeypatch):
    """Let nothing of the machine that runs the tests be warned of."""
    monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE", raising=False)


def test_good_settings(pool_settings):
    """Of the settings of this test project, the checks say nothing."""
    assert run_checks(tags=["ormbridge"]) == []


def test_bad_setting_of_the_bridge_comes_alone(check, pool_settings):
    """An error in the bridge's own settings is told first; the warnings follow once it is gone."""
    pool_settings(MAX_THREADS=0)
    (error,) = check(**POSTGRESQL, AUTOCOMMIT=False)
    assert "ormbridge.E001" in error
    pool_settings()
    (warning,) = check(**POSTGRESQL, AUTOCOMMIT=False)
    assert "ormbridge.W007" in warning


def test_each_database_is_checked(monkeypatch):
    """A warning names the alias that it is about."""
    databases = {"default": {**POSTGRESQL}, "other": {**POSTGRESQL, "AUTOCOMMIT": False}}
    monkeypatch.setattr(checks, "connections", ConnectionHandler(databases))
    assert [(message.id, message.obj) for message in run_checks(tags=["ormbridge"])] == [
        ("ormbridge.W007", "settings.DATABASES['other']")
    ]


def test_without_databases(monkeypatch):
    """A project without a database has nothing to warn of."""
    monkeypatch.setattr(checks, "connections", ConnectionHandler({}))
    assert run_checks(tags=["ormbridge"]) == []


# W001


@pytest.mark.parametrize("engine", ["django.db.backends.postgresql", "django.db.backends.mysql"])
def test_connecting_anew(check, engine):
    """W001: a database server, CONN_MAX_AGE of 0 and no pool."""
    assert check(ENGINE=engine, CONN_MAX_AGE=0) == [
        "settings.DATABASES['default']: (ormbridge.W001) CONN_MAX_AGE is 0, and there is no pool: "
        "each call, or request, connects anew\n"
        "\tHINT: set it to seconds or None, with BridgeMiddleware; or, with psycopg, "
        "OPTIONS['pool']"
    ]


@pytest.mark.parametrize("age", [60, None])
def test_persistent_connections_need_no_warning(check, age):
    """W001 is silent where connections persist."""
    assert check(**POSTGRESQL | {"CONN_MAX_AGE": age}) == []


@pytest.mark.parametrize("pool", [True, {"min_size": 100}])
def test_pool_needs_no_persistent_connections(check, pool_settings, pool):
    """W001 is silent where psycopg pools."""
    pool_settings(MAX_THREADS=2)
    assert check(**POSTGRESQL | {"CONN_MAX_AGE": 0, "OPTIONS": {"pool": pool}}) == []


@pytest.mark.parametrize(
    "engine",
    [
        "django.db.backends.sqlite3",
        "django.contrib.gis.db.backends.spatialite",
        "dj_db_conn_pool.backends.postgresql",
    ],
)
def test_what_connects_lightly_needs_no_warning(check, engine):
    """W001 is silent for SQLite, and for an engine that brings a pool."""
    assert check(ENGINE=engine, NAME="project", CONN_MAX_AGE=0) == []


# W002


@pytest.mark.parametrize("age", [60, None])
def test_application_without_the_middleware(check, asgi, settings, age):
    """W002: connections persist, and the application is Django's own, not wrapped."""
    asgi(ASGIHandler())
    settings.ASGI_APPLICATION = "project.asgi.application"
    assert check(**POSTGRESQL | {"CONN_MAX_AGE": age}) == [
        f"settings.DATABASES['default']: (ormbridge.W002) CONN_MAX_AGE is {age}, and "
        "project.asgi.application is not in BridgeMiddleware: each request leaves its connection "
        "behind\n"
        "\tHINT: write application = BridgeMiddleware(application) in that module"
    ]


@pytest.mark.parametrize(
    ("root_urlconf", "asgi_application"),
    [("project.urls", None), ("project.urls", ""), ("elsewhere.urls", "project.asgi.application")],
)
def test_where_the_application_is(check, asgi, settings, root_urlconf, asgi_application):
    """The application is the one of ASGI_APPLICATION, or else the one beside ROOT_URLCONF."""
    asgi(ASGIHandler())
    settings.ROOT_URLCONF, settings.ASGI_APPLICATION = root_urlconf, asgi_application
    (warning,) = check(**POSTGRESQL)
    assert "project.asgi.application is not in BridgeMiddleware" in warning
    asgi(BridgeMiddleware(ASGIHandler()))
    assert check(**POSTGRESQL) == []


async def consumer(scope, receive, send):
    """Stand for a consumer."""


class OtherMiddleware:
    """A middleware as Starlette, uvicorn and Sentry have them."""

    __module__ = "starlette.middleware.cors"

    def __init__(self, app):
        self.app = app


KNOWN = {
    "router": lambda inner: ProtocolTypeRouter({"http": inner, "websocket": consumer}),
    "urls": lambda inner: URLRouter([path("events", consumer), re_path("", inner)]),
    "static": ASGIStaticFilesHandler,
    "auth": AuthMiddlewareStack,
    "origin": AllowedHostsOriginValidator,
    "others": OtherMiddleware,
    "nested": lambda inner: ProtocolTypeRouter({"http": CookieMiddleware(BaseMiddleware(inner))}),
}


@pytest.mark.parametrize("wrap", KNOWN.values(), ids=KNOWN)
def test_middleware_inside_another(check, asgi, settings, wrap):
    """W002 looks through what is known to hand requests on, down to Django or the middleware."""
    settings.ASGI_APPLICATION = "project.asgi.application"
    settings.STATIC_URL = "static/"
    asgi(wrap(ASGIHandler()))
    (warning,) = check(**POSTGRESQL)
    assert "ormbridge.W002" in warning
    asgi(wrap(BridgeMiddleware(ASGIHandler())))
    assert check(**POSTGRESQL) == []


def test_middleware_around_http_alone(check, asgi, settings):
    """W002 is about requests: what a ProtocolTypeRouter has for "http"."""
    settings.ASGI_APPLICATION = "project.asgi.application"
    bare = ASGIHandler()
    bridged = BridgeMiddleware(bare)
    asgi(ProtocolTypeRouter({"http": bare, "websocket": bridged}))
    assert len(check(**POSTGRESQL)) == 1
    asgi(ProtocolTypeRouter({"http": bridged, "websocket": bare}))
    assert check(**POSTGRESQL) == []
    asgi(ProtocolTypeRouter({"websocket": bare}))
    assert check(**POSTGRESQL) == []


def in_function(inner):
    async def application(scope, receive, send):
        await inner(scope, receive, send)

    return application


def in_function_that_wraps(inner):
    return functools.wraps(inner)(in_function(BridgeMiddleware(inner)))


class Own:
    """A class of somebody's own, which keeps the application under any name."""

    def __init__(self, name, inner):
        setattr(self, name, inner)
        self.bridged = BridgeMiddleware(inner)

    async def __call__(self, scope, receive, send):
        await self.bridged(scope, receive, send)


class OwnHandler(ASGIHandler):
    """A handler of somebody's own, which adds the middleware where nobody sees it."""

    def __init__(self, inner):
        super().__init__()
        self.bridged = BridgeMiddleware(super().__call__)

    async def __call__(self, scope, receive, send):
        await self.bridged(scope, receive, send)


class OwnMiddleware(BaseMiddleware):
    """A middleware of Channels, which adds ours."""

    async def __call__(self, scope, receive, send):
        await BridgeMiddleware(self.inner)(scope, receive, send)


class Mounting:
    """A Starlette or FastAPI application, which mounts others."""

    __module__ = "starlette.applications"

    def __init__(self, inner):
        mount = type("Mount", (), {"__module__": "starlette.routing", "app": inner})()
        self.router = types.SimpleNamespace(routes=[mount])
        self.routes = [mount]

    async def __call__(self, scope, receive, send):
        """Stand for what finds the route."""


UNKNOWN = {
    "function": lambda inner: in_function(BridgeMiddleware(inner)),
    "wraps": in_function_that_wraps,
    "partial": lambda inner: functools.partial(in_function(BridgeMiddleware(inner))),
    "method": lambda inner: Own("kept", inner).__call__,
    "handler": OwnHandler,
    "channels": OwnMiddleware,
    "mounted": lambda inner: Mounting(BridgeMiddleware(inner)),
    "mounting": lambda inner: BridgeMiddleware(Mounting(inner)),
    "lazy": lambda inner: SimpleLazyObject(lambda: BridgeMiddleware(inner)),
    **{
        name: functools.partial(Own, name)
        for name in ("application", "app", "inner", "handler", "wrapped", "callback", "routes")
    },
}


@pytest.mark.parametrize("wrap", UNKNOWN.values(), ids=UNKNOWN)
def test_application_that_cannot_be_seen_through(check, asgi, settings, wrap):
    """W002 is silent where code that it does not know may add the middleware."""
    settings.ASGI_APPLICATION = "project.asgi.application"
    asgi(wrap(ASGIHandler()))
    assert check(**POSTGRESQL) == []
    asgi(KNOWN["nested"](wrap(ASGIHandler())))
    assert check(**POSTGRESQL) == []


def test_closed_connections_need_no_middleware(check, asgi, settings):
    """W002 is silent where no connection outlives its request."""
    asgi(ASGIHandler())
    settings.ASGI_APPLICATION = "project.asgi.application"
    assert check(**SQLITE, CONN_MAX_AGE=0) == []


@pytest.mark.parametrize("wrong", ["", "nowhere.asgi.application", "project.asgi.app", 3])
def test_application_that_cannot_be_found(check, asgi, settings, wrong):
    """W002 is silent where the application cannot be found."""
    asgi(ASGIHandler())
    settings.ASGI_APPLICATION = wrong
    assert check(**POSTGRESQL) == []


def test_application_that_fails(check, settings, tmp_path, monkeypatch):
    """W002 is silent where the module of the application cannot be imported."""
    (tmp_path / "failing_asgi.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    settings.ASGI_APPLICATION = "failing_asgi.application"
    assert check(**POSTGRESQL) == []


def test_applications_in_a_ring(check, asgi, settings):
    """W002 is silent, and the check ends, where one application leads back to itself."""
    ring = BaseMiddleware(None)
    ring.inner = ring
    asgi(ring)
    settings.ASGI_APPLICATION = "project.asgi.application"
    assert check(**POSTGRESQL) == []


# W003


@pytest.mark.parametrize("name", [":memory:", "file:project?mode=memory"])
def test_database_in_memory(check, pool_settings, name):
    """W003: SQLite in memory, and more than one thread."""
    pool_settings(MAX_THREADS=2)
    assert check(**SQLITE | {"NAME": name}) == [
        f"settings.DATABASES['default']: (ormbridge.W003) NAME is {name!r}: each of up to 2 "
        "threads has a database of its own\n"
        "\tHINT: let NAME be a file"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "project.sqlite3",
        Path("project.sqlite3"),
        Path(":memory:"),
        "file:memorydb_default?mode=memory&cache=shared",
    ],
)
def test_database_that_threads_share(check, pool_settings, name):
    """W003 is silent for a file, and for a database in memory with a shared cache."""
    pool_settings(MAX_THREADS=2)
    assert check(**SQLITE | {"NAME": name}) == []


def test_database_in_memory_of_one_thread(check, pool_settings):
    """W003 is silent where there is one worker."""
    pool_settings(MAX_THREADS=1)
    assert check(**SQLITE | {"NAME": ":memory:"}) == []


def test_database_in_memory_is_one_for_each_thread():
    """A table that one worker makes in ``:memory:`` does not exist for another."""
    result = run_python(
        """
        import asyncio, threading
        from django.conf import settings
        settings.configure(
            DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            ORMBRIDGE={"MAX_THREADS": 2},
        )
        import django
        django.setup()
        from django.db import OperationalError, connection
        from ormbridge import database_sync_to_async

        made, seen = threading.Event(), threading.Event()

        def make():
            with connection.cursor() as cursor:
                cursor.execute("CREATE TABLE made (name text)")
                made.set()
                assert seen.wait(30)
                cursor.execute("SELECT * FROM made")
                return cursor.fetchall()

        def look():
            try:
                assert made.wait(30)
                with connection.cursor() as cursor:
                    cursor.execute("SELECT * FROM made")
            except OperationalError as error:
                return str(error)
            finally:
                seen.set()

        async def main():
            calls = [database_sync_to_async(call)() for call in (make, look)]
            print(await asyncio.gather(*calls))

        asyncio.run(main())
        """
    )
    assert (result.stdout, result.stderr) == ("[[], 'no such table: made']\n", "")


# W004


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (True, 4),
        ({"timeout": 5}, 4),
        ({"min_size": 2}, 2),
        ({"max_size": None}, 4),
        ({"min_size": 1, "max_size": 9}, 9),
    ],
)
def test_pool_smaller_than_the_bound(check, pool_settings, pool, size):
    """W004: psycopg's pool has fewer connections than there may be threads."""
    pool_settings(MAX_THREADS=10)
    assert check(**POSTGRESQL | {"CONN_MAX_AGE": 0, "OPTIONS": {"pool": pool}}) == [
        f"settings.DATABASES['default']: (ormbridge.W004) OPTIONS['pool'] allows {size} "
        'connections to up to 10 threads: calls may fail with "couldn\'t get a connection"\n'
        f"\tHINT: set its max_size to 10, or MAX_THREADS (ASGI_THREADS) to {size}"
    ]
    pool_settings(MAX_THREADS=size)
    assert check(**POSTGRESQL | {"CONN_MAX_AGE": 0, "OPTIONS": {"pool": pool}}) == []


@pytest.mark.parametrize("pool", [{"max_size": 10}, {"min_size": 10}, False, None])
def test_pool_as_large_as_the_bound(check, pool_settings, pool):
    """W004 is silent for a pool with a connection for each thread, and without a pool."""
    pool_settings(MAX_THREADS=10)
    warnings = check(**POSTGRESQL | {"CONN_MAX_AGE": 0, "OPTIONS": {"pool": pool}})
    assert [warning for warning in warnings if "W001" not in warning] == []


def test_asgi_threads_is_the_bound(check, pool_settings, monkeypatch):
    """W004 counts the threads that ASGI_THREADS allows, where that is set."""
    pool_settings(MAX_THREADS=2)
    monkeypatch.setenv("ASGI_THREADS", "5")
    (warning,) = check(**POSTGRESQL | {"CONN_MAX_AGE": 0, "OPTIONS": {"pool": True}})
    assert "allows 4 connections to up to 5 threads" in warning


# W005


@pytest.mark.parametrize(
    ("host", "port"), [("db", 6432), ("db", "6432"), ("PgBouncer.internal", ""), ("pgbouncer", 1)]
)
def test_server_side_cursors_behind_pgbouncer(check, host, port):
    """W005: server-side cursors, and an address that looks like PgBouncer."""
    assert check(**POSTGRESQL, HOST=host, PORT=port) == [
        "settings.DATABASES['default']: (ormbridge.W005) DISABLE_SERVER_SIDE_CURSORS is False, and "
        f"{host}:{port} looks like PgBouncer: if it pools transactions, iterator() loses its "
        "cursor\n"
        "\tHINT: set it to True, and leave OPTIONS['prepare_threshold'] out"
    ]
    assert check(**POSTGRESQL, HOST=host, PORT=port, DISABLE_SERVER_SIDE_CURSORS=True) == []


@pytest.mark.parametrize("engine", ["django.db.backends.postgresql", "django.db.backends.mysql"])
def test_server_side_cursors_elsewhere(check, engine):
    """W005 is silent at PostgreSQL's own address, and for another database."""
    port = 5432 if engine.endswith("postgresql") else 6432
    assert check(ENGINE=engine, CONN_MAX_AGE=60, HOST="db", PORT=port) == []


if CHOICE == "postgresql":  # other databases have no such pool, and no such cursors

    def test_pool_smaller_than_the_bound_ends_in_a_timeout():
        """A call that gets no connection from psycopg's pool fails once that has waited enough."""
        result = run_python(
            """
            import asyncio, threading, django
            from django.conf import settings
            from tests.settings import postgresql

            options = {"pool": {"min_size": 1, "timeout": 0.5}}
            database = {**postgresql(), "NAME": "postgres", "OPTIONS": options}
            settings.configure(DATABASES={"default": database}, ORMBRIDGE={"MAX_THREADS": 2})
            django.setup()
            from django.db import OperationalError, connection
            from ormbridge import database_sync_to_async

            other_failed = threading.Event()

            @database_sync_to_async
            def call():
                try:
                    connection.ensure_connection()
                except OperationalError as error:
                    other_failed.set()
                    return str(error)
                assert other_failed.wait(30)
                return "has a connection"

            async def main():
                print(*sorted(await asyncio.gather(call(), call())), sep="\\n")

            asyncio.run(main())
            connection.close_pool()
            """
        )
        assert (result.stdout, result.stderr) == (
            "couldn't get a connection after 0.50 sec\nhas a connection\n",
            "",
        )

    @pytest.mark.parametrize(("disable", "expected"), [(False, 1), (True, 0)])
    def test_iterator_keeps_a_cursor(transactional_db, connection_settings, disable, expected):
        """An iterator that is not at its end has a cursor on its server connection."""
        connection_settings(DISABLE_SERVER_SIDE_CURSORS=disable)
        User.objects.bulk_create([User(username="ada"), User(username="bob")])
        users = User.objects.iterator(chunk_size=1)
        next(users)
        with connection.cursor() as cursor:
            cursor.execute("SELECT name FROM pg_cursors")
            names = [name for (name,) in cursor.fetchall()]
        users.close()
        assert [name.startswith("_django_curs_") for name in names] == [True] * expected

    def test_django_prepares_no_statements(transactional_db):
        """Unless OPTIONS say so, Django has psycopg prepare no statement."""
        connection.ensure_connection()
        assert connection.connection.prepare_threshold is None


# W006


async def view(request):
    """Answer on the loop."""
    return HttpResponse("async")


@transaction.non_atomic_requests
async def exempt_view(request):
    """Answer on the loop, without a transaction."""
    return HttpResponse("async")


@transaction.non_atomic_requests(using="other")
async def view_exempt_elsewhere(request):
    """Answer on the loop, without a transaction on another database."""


def sync_view(request):
    """Answer on a thread."""


class AsyncView(View):
    """Answer on the loop, as a class."""

    async def get(self, request):
        """Answer."""


class SyncView(View):
    """Answer on a thread, as a class."""

    def get(self, request):
        """Answer."""


HERE = __name__


def test_atomic_requests_with_async_views(check, settings):
    """W006: ATOMIC_REQUESTS, and async views; three are named, each once."""
    inner = [path("a", view), path("b", AsyncView.as_view()), path("c", view)]
    settings.ROOT_URLCONF = (
        path("inner/", include(inner)),
        path("sync", sync_view),
        path("sync-class", SyncView.as_view()),
        path("exempt", exempt_view),
    )
    start = (
        "settings.DATABASES['default']: (ormbridge.W006) ATOMIC_REQUESTS is True, which Django "
        f"refuses to async views: {HERE}.view, {HERE}.AsyncView"
    )
    hint = "\n\tHINT: decorate them with @transaction.non_atomic_requests(using='default')"
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == [start + hint]
    settings.ROOT_URLCONF += (path("d", view_exempt_elsewhere),)
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == [
        f"{start}, {HERE}.view_exempt_elsewhere{hint}"
    ]

    async def fourth(request):
        pass

    settings.ROOT_URLCONF += (path("e", fourth),)
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == [
        f"{start}, {HERE}.view_exempt_elsewhere and 1 more{hint}"
    ]


def test_async_views_without_atomic_requests(check, settings):
    """W006 is silent where ATOMIC_REQUESTS is off, or no async view is left."""
    settings.ROOT_URLCONF = (path("", view),)
    assert check(**POSTGRESQL) == []
    settings.ROOT_URLCONF = (path("", exempt_view), path("sync", sync_view))
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == []


def test_exemption_is_for_one_database(monkeypatch, settings):
    """W006 is silent about the database that a view is exempt from, and about that one alone."""
    databases = {"default": POSTGRESQL, "other": POSTGRESQL}
    databases = {alias: {**each, "ATOMIC_REQUESTS": True} for alias, each in databases.items()}
    monkeypatch.setattr(checks, "connections", ConnectionHandler(databases))
    settings.ROOT_URLCONF = (path("", exempt_view), path("other", view_exempt_elsewhere))
    default, other = run_checks(tags=["ormbridge"])
    assert default.msg.endswith(f"async views: {HERE}.view_exempt_elsewhere")
    assert other.msg.endswith(f"async views: {HERE}.exempt_view")


@pytest.mark.parametrize("wrong", [None, "nowhere.urls", 3])
def test_urlconf_that_does_not_work(check, settings, wrong):
    """W006 leaves a URLconf that cannot be read to Django's own checks."""
    settings.ROOT_URLCONF = wrong
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == []


def test_without_a_urlconf(check, settings):
    """W006 is silent where there is no ROOT_URLCONF."""
    if hasattr(settings, "ROOT_URLCONF"):
        del settings.ROOT_URLCONF
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == []


async def test_django_refuses_what_is_warned_of(settings, connection_settings):
    """Django answers an async view under ATOMIC_REQUESTS with an error, unless it is exempt."""
    connection_settings(ATOMIC_REQUESTS=True)
    settings.ROOT_URLCONF = (path("", view), path("exempt", exempt_view))
    with pytest.raises(RuntimeError, match=r"^You cannot use ATOMIC_REQUESTS with async views\.$"):
        await AsyncClient().get("/")
    response = await AsyncClient().get("/exempt")
    assert (response.status_code, response.content) == (200, b"async")


# W007


def test_autocommit_off(check):
    """W007: AUTOCOMMIT is off."""
    assert check(**POSTGRESQL, AUTOCOMMIT=False) == [
        "settings.DATABASES['default']: (ormbridge.W007) AUTOCOMMIT is False: what a call leaves "
        "uncommitted is rolled back as it ends\n"
        "\tHINT: leave AUTOCOMMIT out, and use transaction.atomic()"
    ]
    assert check(**POSTGRESQL, AUTOCOMMIT=True) == []


@pytest.fixture
def without_autocommit(transactional_db, pool_settings):
    """Switch AUTOCOMMIT off for one worker, and on again before the test database is emptied."""
    pool_settings(MAX_THREADS=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(connections.settings["default"], "AUTOCOMMIT", False)
        yield


async def test_uncommitted_work_without_autocommit(without_autocommit, caplog):
    """With AUTOCOMMIT off, what a call leaves uncommitted is rolled back as it ends."""
    await database_sync_to_async(User.objects.create)(username="ada")
    assert [record.getMessage() for record in caplog.records] == [
        "connection 'default' discarded: the call left a transaction open; it was rolled back"
    ]
    assert await database_sync_to_async(User.objects.count)() == 0


async def test_reading_without_autocommit(without_autocommit):
    """With AUTOCOMMIT off, a call that only reads costs its connection, too, but on SQLite."""
    await database_sync_to_async(User.objects.count)()
    assert stats().discarded == (0 if connection.vendor == "sqlite" else 1)


async def test_committed_work_without_autocommit(without_autocommit):
    """With AUTOCOMMIT off, what a call commits itself is kept."""

    def create():
        User.objects.create(username="ada")
        transaction.commit()

    await database_sync_to_async(create)()
    assert await database_sync_to_async(User.objects.count)() == 1


async def test_atomic_without_autocommit(without_autocommit):
    """With AUTOCOMMIT off, ``transaction.atomic()`` does not commit either, but on SQLite."""
    await database_sync_to_async(transaction.atomic(User.objects.create))(username="ada")
    expected = 1 if connection.vendor == "sqlite" else 0
    assert await database_sync_to_async(User.objects.count)() == expected


# W008


@pytest.mark.parametrize("value", ["true", "1", "0"])
def test_async_unsafe_is_allowed(check, monkeypatch, value):
    """W008: the variable is set with which Django lets plain queries run in coroutines."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", value)
    assert check(**POSTGRESQL) == [
        "?: (ormbridge.W008) DJANGO_ALLOW_ASYNC_UNSAFE is set: a plain query in a coroutine runs "
        "outside of its atomic()\n"
        "\tHINT: unset it, and use a-methods or database_sync_to_async"
    ]


def test_async_unsafe_that_is_empty(check, monkeypatch):
    """W008 is silent where the variable is empty: Django then raises, as without it."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "")
    assert check(**POSTGRESQL) == []


async def test_plain_query_is_outside_of_its_block(
    transactional_db, connection_settings, monkeypatch
):
    """With the variable, what a plain query in ``atomic()`` writes survives the rollback."""
    if CHOICE == "sqlite":  # or the block would have the only lock for writing from its beginning
        options = {**connections.settings["default"]["OPTIONS"], "transaction_mode": "DEFERRED"}
        connection_settings(OPTIONS=options)
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    async with atomic():
        User.objects.create(username="plain")
        connection.close()  # that of the coroutine, which nobody else would close
        await User.objects.acreate(username="awaited")
        await database_sync_to_async(transaction.set_rollback)(True)
    assert [user.username async for user in User.objects.all()] == ["plain"]


# W009


TENANTS = "django_tenants.postgresql_backend"
TENANTS_LINE = (
    f"settings.DATABASES['default']: (ormbridge.W009) ENGINE is {TENANTS!r}, and "
    "ORMBRIDGE['RESET'] is None: the next call on a worker meets the tenant of the last one\n"
    "\tHINT: let RESET name a function that calls connection.set_schema_to_public(), or the like"
)


def reset(connection):
    """Stand for a RESET."""


def test_tenants_without_a_reset(check, pool_settings):
    """W009: an engine that keeps a tenant on its connection, and no RESET."""
    assert check(ENGINE=TENANTS, CONN_MAX_AGE=60) == [TENANTS_LINE]
    pool_settings(RESET=f"{__name__}.reset")
    assert check(ENGINE=TENANTS, CONN_MAX_AGE=60) == []


@pytest.mark.parametrize(
    "engine",
    [
        "tenant_schemas.postgresql_backend",
        "django_multitenant.backends.postgresql",
        "db_multitenant.db.backends.mysql",
        "boardinghouse.backends.postgres",
    ],
)
def test_engines_that_keep_a_tenant(check, engine):
    """W009 knows the engines of several packages by their names."""
    (warning,) = check(ENGINE=engine, CONN_MAX_AGE=60)
    assert f"ormbridge.W009) ENGINE is {engine!r}" in warning


def test_tenants_in_context_variables(check, settings):
    """W009 is silent where the package keeps its tenant with the request, not on the thread."""
    assert check(ENGINE="django_pgschemas.postgresql", CONN_MAX_AGE=60) == []
    settings.TENANT_USE_ASGIREF = True
    assert check(ENGINE="django_multitenant.backends.postgresql", CONN_MAX_AGE=60) == []


def connections_are_open():
    connection.ensure_connection()


async def test_what_a_call_keeps_on_its_connection(transactional_db, pool_settings):
    """What a call puts on Django's connection object is there while that is open."""
    pool_settings(MAX_THREADS=1)
    await database_sync_to_async(connections_are_open)()
    await database_sync_to_async(lambda: setattr(connection, "tenant", "acme"))()
    assert await database_sync_to_async(lambda: connection.tenant)() == "acme"


# W010


BOUNCER = {**POSTGRESQL, "HOST": "pgbouncer", "PORT": 6432, "DISABLE_SERVER_SIDE_CURSORS": True}


@pytest.mark.parametrize(
    ("database", "bridge", "names"),
    [
        ({"OPTIONS": {"assume_role": "app"}}, {}, "OPTIONS['assume_role']"),
        ({"OPTIONS": {"options": "-c statement_timeout=5s"}}, {}, "OPTIONS['options']"),
        ({"ENGINE": "django_pgschemas.postgresql"}, {}, "ENGINE"),
        ({"ENGINE": TENANTS}, {"RESET": f"{__name__}.reset"}, "ENGINE, RESET"),
    ],
)
def test_state_of_the_session_behind_pgbouncer(check, pool_settings, database, bridge, names):
    """W010: signs of state on the session, and an address that looks like PgBouncer."""
    pool_settings(**bridge)
    assert check(**{**BOUNCER, **database}) == [
        f"settings.DATABASES['default']: (ormbridge.W010) {names}: state of the session, it "
        "seems, and pgbouncer:6432 looks like PgBouncer: if it pools transactions, a call may meet "
        "that of others\n"
        "\tHINT: use SET LOCAL in atomic(), or let PgBouncer have pool_mode = session"
    ]
    assert check(**{**BOUNCER, **database, "HOST": "db", "PORT": 5432}) == []


def test_pgbouncer_without_state_of_the_session(check):
    """W010 is silent where nothing points to state on the session."""
    assert check(**BOUNCER, OPTIONS={"options": "", "sslmode": "require"}) == []


# How the checks come to run


CHECK = """
    from django.conf import settings
    from django.core.management import execute_from_command_line

    settings.configure(
        ROOT_URLCONF="project_urls",
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3", "NAME": "a-file", "AUTOCOMMIT": False
            }
        },
        INSTALLED_APPS=%r,
    )
    execute_from_command_line(["manage.py", "check"])
    """


@pytest.mark.parametrize(("apps", "expected"), [(["ormbridge"], True), ([], False)])
def test_checks_run_where_the_package_is_installed(tmp_path, apps, expected):
    """With ``"ormbridge"`` in INSTALLED_APPS the checks run; a URLconf imports it too late."""
    (tmp_path / "project_urls.py").write_text("import ormbridge\nurlpatterns = []\n")
    result = run_python(f"import sys; sys.path.append({str(tmp_path)!r})\n" + dedent(CHECK % apps))
    assert (result.returncode, "ormbridge.W007" in result.stderr) == (0, expected)
