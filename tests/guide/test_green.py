"""The page ``guide/green``: its examples, and the claims it makes."""

import asyncio
import re
import threading

import pytest
from channels.generic.websocket import WebsocketConsumer
from django.contrib.auth.models import User
from django.db import connection
from django.db.backends.utils import CursorWrapper
from django.db.models.signals import pre_save
from django.http import HttpResponse
from django.utils.deprecation import MiddlewareMixin

from ormbridge import BridgeMiddleware, atomic, database_sync_to_async, pinned, stats
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

    kept = threading.local()

    class KeepsUser(MiddlewareMixin):
        """Keeps the user of the request on the thread, as packages do."""

        def process_request(self, request):
            """Keep it."""
            kept.user = "ada"

    def keeps_user(get_response):
        """Keep it, in a middleware that has no other form than this one."""

        def middleware(request):
            kept.user = "ada"
            return get_response(request)

        return middleware

    # What runs green.

    @pytest.fixture
    def green(pool_settings):
        """Switch it on, with other settings beside it: ``green(MAX_THREADS=1)``."""

        def switch(**more):
            pool_settings(GREEN=True, **more)
            stats()  # the pool that reads them

        switch()
        return switch

    @pytest.fixture
    def statements(monkeypatch):
        """Return a list of whether each statement was sent from the event loop's thread."""
        own, seen, execute = threading.get_ident(), [], CursorWrapper.execute

        def noted(*args):
            seen.append(threading.get_ident() == own)
            return execute(*args)

        monkeypatch.setattr(CursorWrapper, "execute", noted)
        return seen

    def count():
        return User.objects.count()

    def count_first(get_response):
        def middleware(request):
            count()
            return get_response(request)

        return middleware

    async def in_a_block():
        async with atomic():
            return await User.objects.acount()

    async def in_pinned():
        async with pinned():
            return await User.objects.acount()

    @pytest.mark.parametrize("block", [in_a_block, in_pinned])
    async def test_methods_in_a_block(block, green, statements):
        """Django's own methods in a block run on the event loop's thread, outside of requests."""
        await block()
        assert statements
        assert all(statements)

    async def test_sync_view_runs_on_a_thread(serve, green, statements):
        """A sync view does."""
        assert await get(serve(lambda request: HttpResponse(count()))) == "200 0"
        assert statements == [False]

    async def test_sync_middleware_runs_on_a_thread(serve, green, statements):
        """A sync middleware does."""

        async def view(request):
            return HttpResponse()

        await get(serve(view, f"{__name__}.count_first"))
        assert statements == [False]

    @pytest.mark.parametrize(("keeps", "found"), [("KeepsUser", None), ("keeps_user", "ada")])
    async def test_thread_local_of_a_middleware(serve, green, keeps, found):
        """What a middleware keeps on its thread, code below a green a-method does not find.

        Below one that is only synchronous, nothing runs green, and it does.
        """
        seen = []

        async def view(request):
            await User.objects.acreate(username="ada")
            await database_sync_to_async(see)()
            return HttpResponse()

        def see(**kwargs):
            seen.append(getattr(kept, "user", None))

        pre_save.connect(see, sender=User)
        try:
            await get(serve(view, f"{__name__}.{keeps}"))
        finally:
            pre_save.disconnect(see, sender=User)
        assert seen == [found, "ada"]

    async def test_sync_consumer_runs_on_a_thread(green, statements):
        """A handler of a ``SyncConsumer`` does."""

        class Counts(WebsocketConsumer):
            """Answers with how many users there are."""

            def receive(self, text_data=None, bytes_data=None):
                self.send(str(count()))

        socket = await connect(BridgeMiddleware(Counts.as_asgi()))
        assert await say(socket) == "0"
        await disconnect(socket)
        assert statements == [False]

    async def test_receivers_run_where_the_save_does(green):
        """A receiver of a signal runs on the event loop where what sends it does."""
        seen = []

        def receive(**kwargs):
            seen.append(threading.current_thread() is threading.main_thread())

        pre_save.connect(receive, sender=User)
        try:
            async with pinned():
                await User(username="ada").asave()
        finally:
            pre_save.disconnect(receive, sender=User)
        assert seen == [True]

    def backend():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return cursor.fetchone()[0]

    async def test_no_more_connections_than_threads(green):
        """The bound is that of the threads."""
        green(MAX_THREADS=2)
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

    def test_log_names_what_blocks(run_script, recorded):
        """A function that blocks the loop is named in the log, with its stack, once."""
        output = run_script(example_source("green/slow"), **SERVER)
        assert output.count("WARNING ormbridge: ") == 1
        # The bridge's own frames are above it.
        output = re.sub(r'  File "[^"]*/ormbridge/.*\n.*\n', "", output)
        output = re.sub(r'"[^"]*/script.py"', '"slow.py"', output)
        # A busy machine looks later.
        recorded("green/slow", re.sub(r"\d+\.\d s", "0.1 s", output))
