"""``manage.py check`` on the databases, and how the checks come to run."""

from pathlib import Path
from textwrap import dedent

import pytest
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.db import connection, connections, transaction
from django.db.utils import ConnectionHandler

from ormbridge import checks, database_sync_to_async, green, stats
from tests.checks.conftest import POSTGRESQL, SQLITE
from tests.core.support import run_python
from tests.settings import CHOICE


@pytest.mark.parametrize("values", [{"MAX_THREADS": 0}, {"RESET": "missing.module"}])
def test_check_reports_bad_settings(pool_settings, values):
    """manage.py check reports a setting that is not accepted as ormbridge.E001."""
    pool_settings(**values)
    assert [message.id for message in run_checks(tags=["ormbridge"])] == ["ormbridge.E001"]


def test_check_accepts_good_settings(pool_settings):
    """manage.py check says nothing of good settings."""
    pool_settings(MAX_THREADS=3, TIMEOUT=1, RESET="tests.core.test_settings.test_defaults")
    assert run_checks(tags=["ormbridge"]) == []


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


def test_multitenant_in_green(check, settings, pool_settings):
    """W009: in greenlets, calls share the thread that django-multitenant keeps its tenant on."""
    engine = "django_multitenant.backends.postgresql"

    def warnings():
        return [each for each in check(ENGINE=engine, CONN_MAX_AGE=60) if "W009" in each]

    pool_settings(GREEN=True, RESET=f"{__name__}.reset")
    assert warnings() == [
        f"settings.DATABASES['default']: (ormbridge.W009) ENGINE is {engine!r}, and "
        "ORMBRIDGE['GREEN'] is True: calls meet each other's tenant\n"
        "\tHINT: set TENANT_USE_ASGIREF = True"
    ]
    settings.TENANT_USE_ASGIREF = True
    assert warnings() == []


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


def test_engine_that_calls_postgresql_psql(check, pool_settings):
    """W004 and W005 know an engine such as that of django-postgres-extra, too."""
    pool_settings(MAX_THREADS=10)
    pool, bouncer = check(
        ENGINE="psqlextra.backend", HOST="pgbouncer", CONN_MAX_AGE=0, OPTIONS={"pool": True}
    )
    assert "ormbridge.W004" in pool
    assert "ormbridge.W005" in bouncer


# W011


@pytest.mark.parametrize(
    ("lacks", "databases", "says"),
    [
        ("greenlet", POSTGRESQL, "greenlet is not installed"),
        ("psycopg", POSTGRESQL, "psycopg is not installed"),
        (None, SQLITE, "no database is PostgreSQL"),
    ],
)
def test_green_that_lacks_something(pool_settings, monkeypatch, lacks, databases, says):
    """W011: what runs green needs greenlet, psycopg 3 and PostgreSQL."""
    pool_settings(GREEN=True)
    monkeypatch.setattr(green, "find_spec", lambda name: None if name == lacks else name)
    monkeypatch.setattr(green, "connections", ConnectionHandler({"default": {**databases}}))
    (warning,) = run_checks(tags=["ormbridge"])
    assert str(warning) == (
        f"?: (ormbridge.W011) ORMBRIDGE['GREEN'] is True, and {says}: everything runs on threads\n"
        "\tHINT: install ormbridge[green], use PostgreSQL with psycopg 3, or leave GREEN out"
    )
    pool_settings(GREEN=False)
    assert run_checks(tags=["ormbridge"]) == []


@pytest.mark.parametrize("name", ["__enter__", "__exit__"])
def test_green_below_a_package_with_its_own_atomic(pool_settings, monkeypatch, name):
    """W011: what a package puts around atomic() is named by its file."""
    pool_settings(GREEN=True)
    monkeypatch.setattr(green, "find_spec", lambda name: name)
    monkeypatch.setattr(green, "connections", ConnectionHandler({"default": {**POSTGRESQL}}))
    method = getattr(transaction.Atomic, name)
    monkeypatch.setattr(transaction.Atomic, name, lambda *args: method(*args))
    (warning,) = run_checks(tags=["ormbridge"])
    assert f"is True, and {__file__} does something of its own in each atomic(): every" in str(
        warning
    )


@pytest.mark.parametrize("engine", [POSTGRESQL["ENGINE"], "psqlextra.backend"])
def test_green_that_lacks_nothing(pool_settings, monkeypatch, engine):
    """W011 is silent where all of it is there."""
    pool_settings(GREEN=True)
    monkeypatch.setattr(green, "find_spec", lambda name: name)
    databases = {"default": {**POSTGRESQL, "ENGINE": engine}}
    monkeypatch.setattr(green, "connections", ConnectionHandler(databases))
    assert run_checks(tags=["ormbridge"]) == []


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
