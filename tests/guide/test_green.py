"""The page ``guide/green``: its examples, and the claims it makes."""

import asyncio
import contextvars
import re
import threading

import pytest
from asgiref.local import Local
from asgiref.sync import sync_to_async
from channels.generic.websocket import WebsocketConsumer
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models.signals import pre_save
from django.http import HttpResponse

from ormbridge import BridgeMiddleware, atomic, database_sync_to_async, pinned, stats, stream
from tests.settings import CHOICE, DATABASES
from tests.support.examples import example_source
from tests.support.http import connect, disconnect, get, say

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

if CHOICE == "postgresql":
    pytest.importorskip("greenlet")

    SERVER = {
        "PGHOST": DATABASES["default"]["HOST"],
        "PGPORT": DATABASES["default"]["PORT"],
        "PGUSER": DATABASES["default"]["USER"],
        "PGPASSWORD": DATABASES["default"]["PASSWORD"],
    }

    def unwatched(name):
        """Return the source of an example whose log names nothing that blocks."""
        source = example_source(f"green/{name}")
        return source.replace('{"GREEN": True}', '{"GREEN": True, "GREEN_SLOW": 60}')

    # Examples.

    @pytest.mark.parametrize(
        "name", ["one_thread", "sleep", "local_before", "local_after", "lock_before", "lock_after"]
    )
    def test_examples(name, run_script, recorded):
        """Three queries wait on one thread; what blocks stops the loop; what is shared is mixed."""
        recorded(f"green/{name}", run_script(unwatched(name), **SERVER))

    async def test_view(serve, load_example, pool_settings, statements, recorded):
        """With the one setting, Django's own methods and a function that says so run green."""
        pool_settings(**load_example("green/settings").ORMBRIDGE)
        await User.objects.abulk_create(User(username=each) for each in ("ada", "bob"))
        stats()
        statements.clear()
        answer = await get(serve(load_example("green/view").users))
        assert answer == '200 {"count": 2, "newest": ["bob", "ada"]}'
        assert statements == [True, True]
        recorded("green/settings", "")
        recorded("green/view", answer)

    # What runs green.

    @pytest.fixture
    def statements(monkeypatch):
        """Return a list of whether each statement was sent from the event loop's thread."""
        own, seen = threading.get_ident(), []

        def note(name):
            run = getattr(CursorWrapper, name)

            def noted(*args):
                seen.append(threading.get_ident() == own)
                return run(*args)

            monkeypatch.setattr(CursorWrapper, name, noted)

        note("execute")
        note("executemany")
        return seen

    @pytest.fixture
    def request_with(serve, pool_settings):
        """Return a function that answers a request with what it is given."""

        async def answer(view, green=True):
            pool_settings(GREEN=green)
            stats()  # the first call of a process finds the setting read

            async def run(request):
                return HttpResponse(str(await view()))

            return (await get(serve(run)))[4:]

        return answer

    class Saved(User):
        """A user whose ``save()`` is not Django's."""

        class Meta:
            """It has the table of the user."""

            proxy = True
            app_label = "auth"

        def save(self, *args, **kwargs):
            return super().save(*args, **kwargs)

    def count():
        return User.objects.count()

    def count_first(get_response):
        def middleware(request):
            count()
            return get_response(request)

        return middleware

    async def read_all():
        return [user async for user in User.objects.all()]

    async def read_stream():
        async with stream(User.objects.all()) as users:
            return [user async for user in users]

    async def in_a_block():
        async with atomic():
            return await User.objects.acount()

    async def in_pinned():
        async with pinned():
            return await User.objects.acount()

    GREEN = [User.objects.acount, read_all, read_stream, in_a_block, in_pinned]

    @pytest.mark.parametrize("view", [*GREEN, database_sync_to_async(count, green=True)])
    async def test_runs_on_the_loop(view, request_with, statements):
        """Django's own methods, ``async for``, streams, blocks, and functions that say so."""
        await request_with(view)
        assert statements
        assert all(statements)

    @pytest.mark.parametrize("view", [database_sync_to_async(count), sync_to_async(count)])
    async def test_runs_on_a_thread(view, request_with, statements):
        """Functions that say nothing run on a worker."""
        await request_with(view)
        assert statements
        assert not any(statements)

    async def test_sync_view_runs_on_a_thread(serve, pool_settings, statements):
        """A sync view does."""
        pool_settings(GREEN=True)
        stats()
        assert await get(serve(lambda request: HttpResponse(count()))) == "200 0"
        assert statements == [False]

    async def test_sync_middleware_runs_on_a_thread(serve, pool_settings, statements):
        """A sync middleware does."""
        pool_settings(GREEN=True)
        stats()

        async def view(request):
            return HttpResponse()

        await get(serve(view, f"{__name__}.count_first"))
        assert statements == [False]

    async def test_sync_consumer_runs_on_a_thread(pool_settings, statements):
        """A handler of a ``SyncConsumer`` does."""
        pool_settings(GREEN=True)
        stats()

        class Counts(WebsocketConsumer):
            """Answers with how many users there are."""

            def receive(self, text_data=None, bytes_data=None):
                self.send(str(count()))

        socket = await connect(BridgeMiddleware(Counts.as_asgi()))
        assert await say(socket) == "0"
        await disconnect(socket)
        assert statements == [False]

    async def test_save_of_your_own_runs_on_a_thread(request_with, statements):
        """``asave()`` runs on a worker where ``save()`` is not Django's own."""
        await request_with(lambda: User(username="ada").asave())
        assert all(statements)
        statements.clear()
        await request_with(lambda: Saved(username="bob").asave())
        assert statements
        assert not any(statements)

    async def test_receivers_run_where_the_save_does(request_with):
        """A receiver of a signal runs on the event loop where what sends it does."""
        seen = []

        def receive(**kwargs):
            seen.append(threading.current_thread() is threading.main_thread())

        pre_save.connect(receive, sender=User)
        try:
            await request_with(lambda: User(username="ada").asave())
        finally:
            pre_save.disconnect(receive, sender=User)
        assert seen == [True]

    async def test_commit_with_callbacks_runs_on_a_thread(request_with):
        """``on_commit()`` functions run on a worker."""
        seen = []

        def note():
            seen.append(threading.current_thread().name)

        async def view():
            async with atomic():
                await User.objects.acreate(username="ada")
                await database_sync_to_async(transaction.on_commit, green=True)(note)

        await request_with(view)
        assert len(seen) == 1
        assert seen[0].startswith("ormbridge-worker-")

    @pytest.mark.parametrize(("said", "expected"), [(None, True), (True, True), (False, False)])
    async def test_all(said, expected, request_with, statements):
        """With ``"all"`` a function that says nothing runs green, and one that says no does not."""
        await request_with(database_sync_to_async(count, green=said), green="all")
        assert statements == [expected]

    @pytest.mark.parametrize("said", [None, True])
    async def test_off(said, request_with, statements):
        """Without the setting all run on workers, whatever they say."""
        await request_with(database_sync_to_async(count, green=said), green=False)
        assert statements == [False]

    def backend():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return cursor.fetchone()[0]

    async def test_request_has_one_connection(serve, pool_settings):
        """Green or on a thread, the calls of a request share its worker and its connection."""
        pool_settings(GREEN=True, MAX_THREADS=5)
        stats()

        async def view(request):
            seen = set()
            for green in (True, False, True, False):
                seen.add(await database_sync_to_async(backend, green=green)())
            return HttpResponse(str(seen))

        application = serve(view)
        answers = {*await asyncio.gather(*(get(application) for _ in range(5)))}
        assert len(answers) == 5
        assert not any("," in answer for answer in answers)

    async def test_no_more_connections_than_threads(pool_settings):
        """The bound is that of the threads."""
        pool_settings(GREEN=True, MAX_THREADS=2)
        stats()
        call = database_sync_to_async(backend, green=True)
        assert 1 <= len({*await asyncio.gather(*(call() for _ in range(20)))}) <= 2
        assert stats().threads == 2

    # What it needs of functions.

    def test_lock_held_across_a_query(run_script):
        """A ``Lock`` that another call holds across a query never comes free."""
        source = unwatched("lock_before").replace("RLock()", "Lock()")
        waits = "    if lock.acquire(timeout=1):\n        number = next_number()\n"
        waits += "        lock.release()\n        return number\n"
        source = source.replace("    with lock:\n        return next_number()\n", waits)
        assert run_script(source, **SERVER) == "green=False: 1 2\ngreen=True: 3 None\n"

    async def test_wait_for_the_server_lets_the_loop_go_on(pool_settings):
        """While a green function waits for PostgreSQL, the loop turns."""
        pool_settings(GREEN=True)
        stats()
        turned, loop = threading.Event(), asyncio.get_running_loop()

        def wait():
            with connection.cursor() as cursor:  # it is connected
                loop.call_soon_threadsafe(turned.set)
                before = turned.is_set()
                cursor.execute("SELECT pg_sleep(0.1)")
            return before, turned.is_set()

        assert await database_sync_to_async(wait, green=True)() == (False, True)

    def test_log_names_what_blocks(run_script, recorded):
        """A function that blocks the loop is named in the log, with its stack, once."""
        output = run_script(example_source("green/slow"), **SERVER)
        assert output.count("WARNING ormbridge: ") == 1
        # The bridge's own frames are above it.
        output = re.sub(r'  File "[^"]*/ormbridge/.*\n.*\n', "", output)
        output = re.sub(r'"[^"]*/script.py"', '"slow.py"', output)
        # A busy machine looks later.
        recorded("green/slow", re.sub(r"\d+\.\d s", "0.1 s", output))

    # Tools, and loops.

    async def test_context_goes_in_and_comes_back(pool_settings):
        """A context variable, where tools keep a span's parent, is the caller's; so is a Local."""
        pool_settings(GREEN=True)
        stats()
        span, tenant = contextvars.ContextVar("span"), Local()

        def child(name):
            parent = span.get()
            span.set(f"{parent}/{name}")
            tenant.name += f"/{name}"
            count()  # another call runs meanwhile
            return span.get(), tenant.name

        async def call(name):
            span.set(name)
            tenant.name = name
            inside = await database_sync_to_async(child, green=True)("query")
            return {*inside, span.get(), tenant.name}

        assert await asyncio.gather(call("a"), call("b")) == [{"a/query"}, {"b/query"}]

    def test_uvloop(run_script):
        """On uvloop it is the same."""
        pytest.importorskip("uvloop")
        source = example_source("green/one_thread")
        source = f"import uvloop\n{source}".replace("asyncio.run(main", "uvloop.run(main")
        lines = run_script(source, **SERVER).splitlines()
        assert lines[2:] == ["threads: MainThread", lines[1]]

    MIXED = """
import threading
from django.contrib.auth.models import User
from django.db.backends.utils import CursorWrapper
from ormbridge import pinned, stats
execute = CursorWrapper.execute

def noted(cursor, *args):
    print(cursor.db.alias, threading.current_thread() is threading.main_thread())
    return execute(cursor, *args)

CursorWrapper.execute = noted

async def main():
    async with pinned():
        for alias in ("default", "file"):
            try:
                await User.objects.using(alias).acount()
            except Exception as error:
                assert "auth_user" in str(error), error

stats()
asyncio.run(main())
"""

    def test_other_databases_run_on_threads(run_script):
        """Django's own methods run on a worker where they ask another database."""
        source, _, _ = example_source("green/one_thread").partition("\nseen = ")
        source = source.replace(
            '"NAME": "postgres"}}',
            '"NAME": "postgres"},'
            '"file": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},'
            'INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"]',
        )
        assert run_script(source + MIXED, **SERVER) == "default True\nfile False\n"
