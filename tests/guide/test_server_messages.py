"""More messages that people look up: of servers that refuse, and of two who do the same at once."""

import asyncio
import re
import subprocess
import threading
from pathlib import Path
from uuid import uuid4

import pytest
from django.contrib.auth import alogout
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.db import IntegrityError, InternalError, NotSupportedError, connections
from django.db.models import QuerySet
from django.http import HttpResponse
from django.test import AsyncClient
from django.urls import path

from examples.deployment.stack import parts
from ormbridge import atomic, database_sync_to_async
from tests.core.gate import GUARD, PROCESS_GUARD, apart
from tests.guide.conftest import INITDB, own_server
from tests.settings import CHOICE, DATABASES
from tests.support.http import get
from tests.support.messages import SAYS, is_answered, is_on_the_page, wordings

BOTH = pytest.mark.django_db(transaction=True, databases=["default", "other"])


@database_sync_to_async
def run(statement, using="default"):
    with connections[using].cursor() as cursor:
        cursor.execute(statement)


# Two who do the same at once.


class Meeting(QuerySet):
    """Has two calls wait for each other when they have found nothing."""

    both = threading.Barrier(2, timeout=GUARD)

    def get(self, *args, **kwargs):
        try:
            return super().get(*args, **kwargs)
        except User.DoesNotExist:
            apart(self.both.wait)
            raise


@pytest.mark.parametrize(
    ("wanted", "made"),
    [({"username": "ada"}, ["200 False", "200 True"]), ({"first_name": "Ada"}, ["200 True"] * 2)],
    ids=["unique", "not-unique"],
)
async def test_two_that_get_or_create(transactional_db, serve, wanted, made):
    """Two requests that get or create at once make one row if that is unique, or else two."""

    async def view(request):
        user = {"username": uuid4().hex, **wanted}
        _, is_new = await Meeting(User).aget_or_create(**wanted, defaults=user)
        return HttpResponse(str(is_new))

    application = serve(view)
    assert made == sorted(await asyncio.gather(get(application), get(application)))
    rows = made.count("200 True")
    assert await User.objects.acount() == rows
    if rows > 1:
        with pytest.raises(User.MultipleObjectsReturned) as found:
            await User.objects.aget(**wanted)
        is_answered(found.value)


async def test_row_that_is_there_already(transactional_db):
    """What each database says to a second row with what has to be unique."""
    await User.objects.acreate(username="ada")
    with pytest.raises(IntegrityError) as refused:
        await User.objects.acreate(username="ada")
    is_answered(refused.value)


async def test_session_that_another_request_ends(ada, settings, caplog):
    """A request that changes a session which another one ends meanwhile is answered with 400."""
    client = AsyncClient()

    async def page(request):
        await request.session.aset("page", 1)
        await client.get("/logout")
        return HttpResponse("never sent")

    async def logout(request):
        await alogout(request)
        return HttpResponse()

    settings.ROOT_URLCONF = (path("page", page), path("logout", logout))
    settings.MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware"]
    await client.aforce_login(ada)
    assert (await client.get("/page")).status_code == 400
    assert await Session.objects.acount() == 0
    (record,) = caplog.records
    is_answered(record.exc_info[1])


# PostgreSQL.

POOL = """
import threading
import django
from django.conf import settings
from psycopg_pool import ConnectionPool

server = {{"HOST": "{HOST}", "PORT": "{PORT}", "USER": "{USER}", "PASSWORD": "{PASSWORD}"}}
server |= {{"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}}
pool = {{"min_size": 1, "max_size": 1}}
settings.configure(DATABASES={{"default": {{**server, "OPTIONS": {{"pool": pool}}}}}})
django.setup()
from django.db import connection

def ask():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")

@mistake
def pool_that_is_closed_while_somebody_waits():
    ask()
    other = threading.Thread(target=mistake, args=[ask])
    other.start()
    while not connection.pool.get_stats().get("requests_waiting"):
        pass
    connection.close_pool()
    other.join()

ask()
connection.close()
ask()  # with a new pool
connection.close()
kept = connection.pool
kept.close()
mistake(ask)
connection.close_pool()

own = ConnectionPool(open=False)
mistake(own.getconn)
own.open()
own.close()
mistake(own.getconn)
"""

if CHOICE == "postgresql":
    import psycopg

    @BOTH
    async def test_object_is_saved_where_it_was_read(connection_settings):
        """An object that was read from a database which refuses writes is saved there, too."""
        await User.objects.acreate(username="ada")
        connection_settings("other", OPTIONS={"options": "-c default_transaction_read_only=on"})
        user = await User.objects.using("other").aget()
        with pytest.raises(InternalError, match=r"^cannot execute UPDATE in") as refused:
            await user.asave()
        is_answered(refused.value)
        with pytest.raises(InternalError, match=r"^cannot execute DELETE in") as refused:
            await user.adelete()
        is_answered(refused.value)
        with pytest.raises(InternalError, match=r"^cannot execute INSERT in") as refused:
            await User.objects.using("other").acreate(username="bob")
        is_answered(refused.value)
        with pytest.raises(InternalError, match=r"^cannot execute SELECT FOR UPDATE in") as refused:
            async with atomic(using="other"):
                await User.objects.using("other").select_for_update().aget()
        is_answered(refused.value)
        await user.asave(using="default")

    ALONE = ["CREATE INDEX CONCURRENTLY alone ON auth_user (last_login)", "VACUUM auth_group"]

    @pytest.mark.parametrize("statement", ALONE, ids=["index", "vacuum"])
    async def test_statement_that_runs_in_no_transaction(transactional_db, statement):
        """Some statements are refused in a block, and run in a call of their own."""
        with pytest.raises(InternalError) as refused:
            async with atomic():
                await run(statement)
        is_answered(refused.value)
        await run(statement)
        await run("DROP INDEX IF EXISTS alone")

    async def test_statement_that_runs_in_no_transaction_of_a_test(async_db):
        """They are refused in the transaction of a test as well."""
        with pytest.raises(InternalError, match=r"^VACUUM cannot run inside a transaction block$"):
            await run("VACUUM auth_group")

    @BOTH
    @pytest.mark.parametrize(
        ("prepares", "options"),
        [
            (True, {"server_side_binding": True, "prepare_threshold": 1}),
            (False, {"server_side_binding": True}),
            (False, {"prepare_threshold": 1}),
        ],
        ids=["both-options", "binding", "threshold"],
    )
    async def test_migration_under_a_prepared_statement(
        connection_settings, pool_settings, prepares, options
    ):
        """What psycopg prepared fails on its connection when a migration has changed the type."""
        pool_settings(MAX_THREADS=1)
        connection_settings("default", OPTIONS=options)
        connection_settings("other", OPTIONS={})
        select = "SELECT amount FROM stock"
        await run("CREATE TABLE stock (amount int)", "other")
        try:
            for _ in range(3):
                await run(select)
            await run("ALTER TABLE stock ALTER COLUMN amount TYPE bigint", "other")
            for _ in range(2 if prepares else 0):
                with pytest.raises(NotSupportedError) as refused:
                    await run(select)
                is_answered(refused.value)
            if prepares:
                await database_sync_to_async(lambda: connections["default"].close())()
            await run(select)
        finally:
            await run("DROP TABLE stock", "other")

    def test_psycopg_pool_that_is_closed(run_script, db):
        """What psycopg's pool says when it is closed, to Django and to others."""
        output = run_script((SAYS + POOL).format(**DATABASES["default"]))
        is_on_the_page(re.sub(r"pool-\d", "pool-1", output), 4)


if INITDB is not None:

    def pg_ctl(host, *arguments):
        command = [INITDB.with_name("pg_ctl"), "-D", f"{host}/data", *arguments]
        quiet = {"stdout": subprocess.DEVNULL, "cwd": "/", **parts.account()}
        subprocess.run(command, check=True, timeout=PROCESS_GUARD, **quiet)

    def is_refused(host, how):
        """Wait until the server at *host* refuses a client; assert that the page has why."""
        said = ""
        while "FATAL" not in said:  # before that it still lets clients in, or has no socket yet
            try:
                psycopg.connect(host=host, user="postgres", dbname="postgres").close()
            except psycopg.OperationalError as error:
                said = " ".join(str(error).replace(host, "/var/run/postgresql").split())
        assert said.endswith(how)
        assert said in wordings()

    def test_server_that_stops():
        """A server that waits for its last client to leave lets nobody in."""
        with own_server() as host:
            client = psycopg.connect(host=host, user="postgres", dbname="postgres")
            pg_ctl(host, "-m", "smart", "--no-wait", "stop")
            is_refused(host, "the database system is shutting down")
        client.close()  # it has kept the server until now

    def test_server_that_starts():
        """A server that is still recovering lets nobody in."""
        with own_server() as host:
            pg_ctl(host, "-w", "-m", "immediate", "stop")
            # Recovery waits for the first file of its log.
            Path(host, "data/recovery.signal").touch()
            options = f"-c listen_addresses='' -k {host} -c restore_command='sleep {GUARD:.0f}'"
            pg_ctl(host, "--no-wait", "-l", f"{host}/log", "-o", options, "start")
            is_refused(host, "the database system is starting up")


# SQLite.

FILES = """
import os
import tempfile
from pathlib import Path
import django
from django.conf import settings

root = tempfile.mkdtemp()
os.chmod(root, 0o755)
files = {"default": f"{root}/missing/project.sqlite3", "other": f"{root}/other.sqlite3"}
engine = "django.db.backends.sqlite3"
settings.configure(DATABASES={each: {"ENGINE": engine, "NAME": files[each]} for each in files})
django.setup()
from django.db import connections

def write(alias):
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS stock (amount int)")
        cursor.execute("INSERT INTO stock VALUES (1)")

@mistake
def directory_that_is_not_there():
    write("default")

write("other")

@mistake
def file_that_is_replaced_under_a_connection():
    os.rename(files["other"], files["other"] + ".old")
    write("other")

os.rename(files["other"] + ".old", files["other"])
connections["other"].close()
if os.geteuid() == 0:
    os.seteuid(65534)  # nobody
else:
    os.chmod(root, 0o555)
    os.chmod(files["other"], 0o444)

@mistake
def file_of_somebody_else():
    write("other")

connections["other"].close()
"""


def test_file_of_sqlite(run_script):
    """What SQLite says to a file that cannot be opened, or may not be written."""
    output = run_script(SAYS.format() + FILES)
    missing, *readonly = output.splitlines()
    assert len(readonly) == 2
    is_on_the_page(f"{missing}\n{readonly[0]}\n", 2)
    assert len(set(readonly)) == 1
