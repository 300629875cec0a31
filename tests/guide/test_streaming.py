"""The page ``guide/streaming``: its examples, and the claims it makes."""

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group, User
from django.core.handlers.asgi import ASGIHandler
from django.db import OperationalError, connection, transaction
from django.db.models.query import BaseIterable

from ormbridge import BridgeMiddleware, atomic, database_sync_to_async, pinned, stats, stream
from ormbridge.streaming import source
from tests.core.gate import GUARD
from tests.core.support import until
from tests.settings import CHOICE
from tests.support.http import get, request
from tests.support.timeline import Timeline

pytestmark = pytest.mark.django_db(transaction=True)

# Outside of any context, Django's a-methods use asgiref's thread, and nobody closes its connection.
STRICT = ("-W", "error", "-W", "ignore::ResourceWarning")


@pytest.fixture
def run_example(run_example):
    """Return a function that runs an example, with changes and warnings as errors."""

    def run(name, changes=()):
        return run_example(name, *STRICT, changes=changes)

    return run


@pytest.fixture
def serve(settings, load_example):
    """Return a function that serves the views of an example under the middleware."""

    def application(name):
        settings.ROOT_URLCONF = load_example(name)
        return BridgeMiddleware(ASGIHandler())

    return application


def make_users(count=3, email="{}@Example.org"):
    names = ["ada", "bob", "cyd", *map(str, range(count - 3))]
    User.objects.bulk_create(User(username=name, email=email.format(name)) for name in names)


# The examples, in the order of the page.


async def test_export(serve, recorded):
    """A view sends a table as CSV, and gives its worker back."""
    await database_sync_to_async(make_users)()
    recorded("streaming/export", await get(serve("streaming/export"), "/export/"))
    await until(lambda: stats().idle == stats().threads == 1)


@pytest.mark.parametrize(("rows", "count"), [(3, 1), (5000, 2)])
async def test_pieces_of_the_export(serve, rows, count):
    """The server gets a message for each piece of 64 kB that is yielded, and not one for a row."""
    await database_sync_to_async(make_users)(rows)
    client = request(serve("streaming/export"), "/export/")
    await client.send_input({"type": "http.request"})
    await client.receive_output(GUARD)
    pieces = []
    while piece := (await client.receive_output(GUARD)).get("body"):
        pieces.append(piece)
    await client.wait(GUARD)
    assert b"".join(pieces).count(b"\r\n") == rows
    assert len(pieces) == count


async def test_client_that_leaves_the_export(serve):
    """When the client leaves in the middle of the export, the worker is free again."""
    await database_sync_to_async(make_users)(20_000)
    client = request(serve("streaming/export"), "/export/")
    await client.send_input({"type": "http.request"})
    await client.receive_output(GUARD)
    await client.receive_output(GUARD)
    await client.send_input({"type": "http.disconnect"})
    await client.wait(GUARD)
    await until(lambda: stats().idle == stats().threads == 1)


def test_alive(run_example, recorded):
    """``async for`` over a queryset has all rows in memory, a stream two chunks at the most."""
    recorded("streaming/alive", run_example("streaming/alive"))


def test_left_early_before(run_example, recorded):
    """The cursor of an aiterator() that is left early stays open while somebody has it."""
    recorded("streaming/left_early_before", run_example("streaming/left_early_before"))


async def test_aiterator_is_closed_on_the_thread_of_the_loop():
    """The cursor of an aiterator() that nobody has any more is closed on the loop's thread."""
    closed = []

    class Rows(BaseIterable):
        def __iter__(self):
            try:
                yield from range(5)
            finally:
                closed.append(threading.current_thread())

    async for _ in Rows(None, chunk_size=2):
        await sync_to_async(int)()  # the other thread has let go of the rows by then
        break
    assert closed == []
    await until(lambda: closed)
    assert closed == [threading.current_thread()]


def test_left_early_after(run_example, recorded):
    """The cursor of a stream is closed as its loop is left, whoever still has the stream."""
    recorded("streaming/left_early_after", run_example("streaming/left_early_after"))


async def test_early_exit(serve, recorded):
    """Leaving ``async with`` closes the cursor before the view goes on."""
    await database_sync_to_async(make_users)()
    await User.objects.filter(username="bob").aupdate(email="")
    recorded("streaming/early_exit", await get(serve("streaming/early_exit"), "/without-email/"))


async def test_read_ahead_timeline(monkeypatch, load_example, recorded, recorded_timeline):
    """The next chunk is fetched while the caller sends this one."""
    await database_sync_to_async(make_users)(10_000)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1, "upload"))
    module = load_example("streaming/read_ahead")
    both_run, begun = threading.Barrier(2), []
    fetch, upload = source.Source.next_chunk, module.upload

    def fetch_beside_an_upload(*args):
        begun.append("fetch")
        if len(begun) > 1:  # there is nothing to send before the first has come
            both_run.wait(GUARD)
        return fetch(*args)

    def upload_beside_a_fetch(names):
        both_run.wait(GUARD)
        upload(names)

    monkeypatch.setattr(source.Source, "next_chunk", fetch_beside_an_upload)
    module.upload = upload_beside_a_fetch
    timeline = Timeline()
    timeline.watch(source.Source, "next_chunk", "fetch")
    timeline.watch(module, "upload")
    await module.main()
    fetches = [span for span in timeline.spans if span.call == "fetch"]
    uploads = [span for span in timeline.spans if span.call == "upload"]
    assert (len(fetches), len(uploads)) == (6, 5)  # the last one finds nothing
    recorded_timeline("streaming/read_ahead", timeline)
    recorded("streaming/read_ahead", "")


async def test_kinds(serve, recorded):
    """Values, tuples, raw queries and prefetched objects are streamed."""
    await database_sync_to_async(make_users)()
    group = await Group.objects.acreate(name="staff")
    await group.user_set.aadd(await User.objects.aget(username="bob"))
    recorded("streaming/kinds", await get(serve("streaming/kinds"), "/kinds/"))


def test_tuples_before(run_example, recorded):
    """Django's ``values_list().aiterator()`` makes its query on the event loop's thread."""
    recorded("streaming/tuples_before", run_example("streaming/tuples_before"))


async def test_transaction(serve, recorded):
    """A stream in ``atomic()`` reads and writes in one transaction."""
    await database_sync_to_async(make_users)()
    recorded("streaming/transaction", await get(serve("streaming/transaction"), "/normalise/"))
    assert await User.objects.filter(email="ada@example.org").acount() == 1


@pytest.mark.parametrize("order", ["username", "pk"])
async def test_body_that_changes_what_the_query_goes_by(order):
    """On SQLite a row comes again if the body moves it to where the query has yet to come.

    Where it goes by what does not change, and on other databases, each row comes once.
    """
    await User.objects.abulk_create(User(username=f"{number:02}") for number in range(20))
    seen = []
    async with atomic():
        async for user in stream(User.objects.filter(username__lt="xxxx").order_by(order), 5):
            seen.append(user.pk)
            user.username = f"x{user.username}"
            await user.asave()
    again = CHOICE == "sqlite" and order == "username"
    assert (len(seen) > 20) is again
    assert len(set(seen)) == 20


def test_sqlite_write(run_example, recorded):
    """In WAL mode, SQLite refuses a write in the body of a stream after another connection's."""
    recorded("streaming/sqlite_write", run_example("streaming/sqlite_write"))


def test_sqlite_others_cannot_write(run_example):
    """Without WAL mode, SQLite lets nobody else write while a stream is open."""
    changes = [
        ("journal_mode=WAL", "journal_mode=DELETE"),
        ('"timeout": 20', '"timeout": 0.1'),
        (
            "        await another_request()\n        try:\n",
            "        try:\n            await another_request()\n",
        ),
    ]
    output = run_example("streaming/sqlite_write", changes)
    assert output == "OperationalError: database is locked\n"


if CHOICE == "postgresql":  # other databases have no cursors on the server

    def ask(statement):
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    async def test_cursor_has_no_parallel_plan():
        """A query that PostgreSQL would run in parallel it does not, for a cursor."""

        def plans():
            for setting in ("parallel_setup_cost", "parallel_tuple_cost"):
                ask(f"SET LOCAL {setting} = 0")
            ask("SET LOCAL min_parallel_table_scan_size = 0")
            query = "SELECT count(*) FROM auth_user"
            explained = ask(f"EXPLAIN {query}"), ask(f"EXPLAIN DECLARE c CURSOR FOR {query}")
            return ["Gather" in str(each) for each in explained]

        assert await database_sync_to_async(transaction.atomic(plans))() == [True, False]

    SLOW = "SELECT number AS id, pg_sleep(0.01) FROM generate_series(1, 100) number"

    # psycopg warns of a server-side cursor that the aborted transaction did not let Django close.
    @pytest.mark.filterwarnings("ignore:.* was deleted while still open:ResourceWarning")
    @pytest.mark.parametrize("in_block", [False, True])
    async def test_statement_timeout_of_a_stream(in_block):
        """Outside of a transaction the whole query runs while the timeout is not in force."""
        seen = 0
        stopped = False
        async with pinned():
            await database_sync_to_async(ask)("SET statement_timeout = 200")
            try:
                async with atomic() if in_block else nullcontext():
                    async for _ in stream(User.objects.raw(SLOW)):
                        seen += 1
            except OperationalError as error:
                stopped = "statement timeout" in str(error)
            await database_sync_to_async(ask)("RESET statement_timeout")
        gc.collect()  # now, and not in another test
        assert (seen, stopped) == ((0, True) if in_block else (100, False))
