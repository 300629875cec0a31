"""The page ``guide/database-access``: its examples, and the claims it makes."""

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar
from wsgiref.util import setup_testing_defaults

import asgiref
import channels
import django
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels import consumer as channels_consumer
from channels import db as channels_db
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.exceptions import StopConsumer
from channels.generic.websocket import JsonWebsocketConsumer, WebsocketConsumer
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.core import paginator
from django.core.exceptions import SynchronousOnlyOperation
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.paginator import Paginator
from django.db import connection
from django.db.backends.signals import connection_created
from django.db.models import F, Value
from django.db.models.functions import Concat
from django.db.models.signals import post_init
from django.db.utils import ConnectionHandler
from django.dispatch import Signal
from django.http import HttpResponse
from django.test import AsyncClient
from django.urls import path
from django.utils import timezone, translation

from ormbridge import aclose_old_connections, database_sync_to_async, stats
from tests.core.gate import GUARD
from tests.settings import CHOICE
from tests.support.examples import conversation, example_source

if django.VERSION >= (6, 1):
    from django.core.exceptions import FieldFetchBlocked
    from django.db.models import FETCH_RAISE, Prefetch

# The examples, in the order of the page. Each is run with the bridge, and with channels.db instead.


async def test_sync_consumer(ada, load_example, recorded):
    """A ``SyncConsumer`` reads a user's name with nothing added."""
    module = load_example("database_access/sync_consumer")
    recorded("database_access/sync_consumer", await conversation(module.GreetingConsumer))


async def test_json_consumer(ada, load_example, recorded):
    """A ``JsonWebsocketConsumer`` reads a user's name with nothing added."""
    module = load_example("database_access/json_consumer")
    recorded("database_access/json_consumer", await conversation(module.GreetingConsumer))


async def test_inline_form(ada, load_example, package, recorded):
    """``await database_sync_to_async(self.get_name)()`` returns what the method returns."""
    module = load_example("database_access/inline", package)
    recorded("database_access/inline", await conversation(module.GreetingConsumer))


async def test_decorator_form(ada, load_example, package, recorded):
    """A method decorated with ``@database_sync_to_async`` is awaited like a coroutine method."""
    module = load_example("database_access/decorator", package)
    recorded("database_access/decorator", await conversation(module.GreetingConsumer))


async def test_static_and_class_methods(ada, load_example, package, recorded):
    """Below ``@staticmethod`` or ``@classmethod``, the decorator makes a method that is awaited."""
    module = load_example("database_access/methods", package)
    recorded("database_access/methods", await conversation(module.GreetingConsumer))


async def test_save(ada, load_example, recorded):
    """A consumer that saves in ``@atomic`` saves all of it, or nothing."""
    module = load_example("database_access/save")
    recorded("database_access/save", await conversation(module.TeamConsumer))
    with pytest.raises(User.DoesNotExist):
        await module.TeamConsumer().join("nobody", "go")  # the team is made before it fails
    assert (await Group.objects.aget()).name == "chess"


async def test_async_view(ada, load_example, package, recorded, settings):
    """An async view awaits a decorated function."""
    settings.ROOT_URLCONF = load_example("database_access/view", package)
    response = await AsyncClient().get("/greeting/")
    recorded("database_access/view", f"{response.status_code} {response.text}")


async def test_gather(ada, load_example, package, recorded, settings):
    """``asyncio.gather`` returns the results of several calls in the order they were given."""
    settings.ROOT_URLCONF = load_example("database_access/gather", package)
    response = await AsyncClient().get("/dashboard/")
    recorded("database_access/gather", f"{response.status_code} {response.text}")


def test_async_view_under_wsgi(settings):
    """Under WSGI the calls of an async view run on the thread of its request, one at a time."""

    async def view(request):
        inside = await asyncio.gather(
            *(database_sync_to_async(threading.get_ident)() for _ in "ab")
        )
        apart = await database_sync_to_async(threading.current_thread, thread_sensitive=False)()
        return HttpResponse(f"{inside} {apart.name.rpartition('-')[0]}")

    def serve():
        environ = {}
        setup_testing_defaults(environ)
        response = WSGIHandler()(environ, lambda status, headers: None)
        return threading.get_ident(), b"".join(response).decode()

    settings.ROOT_URLCONF, settings.MIDDLEWARE = (path("", view),), []
    with ThreadPoolExecutor() as threads:
        thread, answer = threads.submit(serve).result(GUARD)
    assert answer == f"{[thread, thread]} ormbridge-worker"


def test_script(run_script, package, recorded):
    """A plain script calls the ORM under ``asyncio.run``."""
    output = run_script(example_source("database_access/script", package))
    recorded("database_access/script", output)


async def test_clean_up_by_hand(ada, load_example, package, recorded, capsys):
    """A long-running task awaits ``aclose_old_connections()`` before it queries again."""
    module = load_example("database_access/clean_up", package)

    async def usernames():
        yield "ada"
        yield "ada"

    await module.greet(usernames())
    recorded("database_access/clean_up", capsys.readouterr().out)


def test_worker_threads(run_script, recorded):
    """Six calls at once share the three threads that ``MAX_THREADS`` allows."""
    recorded("database_access/threads", run_script(example_source("database_access/threads")))


# Async code.


async def test_orm_refuses_the_event_loop(ada):
    """A query in a coroutine raises ``SynchronousOnlyOperation``."""
    with pytest.raises(SynchronousOnlyOperation):
        User.objects.all()[0]


async def test_function_called_too_early(ada):
    """``database_sync_to_async(get_name())`` runs the query in the coroutine, before the bridge."""

    def get_name():
        return User.objects.all()[0].username

    with pytest.raises(SynchronousOnlyOperation):
        await database_sync_to_async(get_name())()


async def test_queryset_is_evaluated_too_late(ada):
    """A queryset that a call returns runs its query where it is read: in the coroutine."""

    @database_sync_to_async
    def get_users():
        return User.objects.all()

    users = await get_users()
    with pytest.raises(SynchronousOnlyOperation):
        list(users)


async def test_list_is_evaluated_in_time(ada):
    """A list made inside the function can be read in the coroutine."""

    @database_sync_to_async
    def get_users():
        return list(User.objects.all())

    assert [user.username for user in await get_users()] == ["ada"]


def test_decorator_above_classmethod():
    """Above ``@classmethod`` the decorator is refused."""
    with pytest.raises(TypeError, match="can only be applied to sync functions"):

        class Greeting:
            @database_sync_to_async
            @classmethod
            def get_name(cls):
                return "ada"


def test_channels_is_not_needed(run_script):
    """The bridge works where Channels is not installed."""
    output = run_script("""
import asyncio, sys

sys.modules["channels"] = None  # import channels: ImportError

from django.conf import settings

settings.configure()

from ormbridge import database_sync_to_async

print(asyncio.run(database_sync_to_async(int)("7")))
""")
    assert output == "7\n"


def test_call_under_async_to_sync_runs_on_the_waiting_thread(db):
    """Under ``async_to_sync`` a call runs on the thread that waits, in its transaction."""
    User.objects.create(username="not committed")

    def look():
        return threading.get_ident(), connection.in_atomic_block, User.objects.count()

    async def call():
        return await database_sync_to_async(look)()

    assert async_to_sync(call)() == (threading.get_ident(), True, 1)


# Synchronous consumers.


async def listen(consumer, *messages):
    """Send *messages* to a new *consumer* and wait until it has stopped."""
    client = ApplicationCommunicator(consumer.as_asgi(), {"type": "test"})
    for message in messages:
        await client.send_input({"type": message})
    await client.wait(GUARD)


async def many_turns_of_the_loop():
    """Let tasks run for far longer than a message needs when nothing holds it up."""
    for _ in range(100):
        await asyncio.sleep(0)


def test_generic_consumers_are_sync_consumers():
    """``WebsocketConsumer`` and ``JsonWebsocketConsumer`` are built on ``SyncConsumer``."""
    assert issubclass(WebsocketConsumer, SyncConsumer)
    assert issubclass(JsonWebsocketConsumer, SyncConsumer)


async def test_sync_handlers_run_in_a_thread():
    """A handler of a ``SyncConsumer`` runs on another thread than the event loop."""
    threads = []

    class Consumer(SyncConsumer):
        def test_stop(self, event):
            threads.append(threading.get_ident())
            raise StopConsumer

    await listen(Consumer, "test.stop")
    assert len(threads) == 1
    assert threads != [threading.get_ident()]


async def test_channels_cleans_up_around_sync_handlers(monkeypatch):
    """Channels closes old connections before and after each handler of a ``SyncConsumer``."""
    events = []
    monkeypatch.setattr(channels_db, "close_old_connections", lambda: events.append("clean"))

    class Consumer(SyncConsumer):
        def test_message(self, event):
            events.append("handle")

        def test_stop(self, event):
            events.append("stop")
            raise StopConsumer

    await listen(Consumer, "test.message", "test.stop")
    assert events == ["clean", "handle", "clean", "clean", "stop", "clean"]


async def test_sync_consumers_share_one_thread():
    """The handlers of all sync consumers of the process run on one thread."""
    threads = []
    all_are_sent = threading.Event()

    class Consumer(SyncConsumer):
        def test_stop(self, event):
            assert all_are_sent.wait(GUARD)
            threads.append(threading.get_ident())
            raise StopConsumer

    listening = [asyncio.create_task(listen(Consumer, "test.stop")) for _ in range(8)]
    await many_turns_of_the_loop()
    all_are_sent.set()
    await asyncio.gather(*listening)
    assert len(threads) == 8
    assert len(set(threads)) == 1


# What touches the database in a coroutine, after all.


class NotingRouter:
    """A router that notes on which threads it is asked, as one does that queries."""

    threads: ClassVar[set] = set()

    def db_for_read(self, model, **hints):
        self.threads.add(threading.get_ident())


async def iterate_over_all(kind):
    async for _ in ContentType.objects.aiterator():
        pass  # to the end, or nobody would close the cursor


@pytest.mark.parametrize(
    ("query", "asked_on_the_loop"),
    [
        (lambda kind: ContentType.objects.filter(pk=kind.pk).afirst(), False),
        (iterate_over_all, True),
        (lambda kind: kind.permission_set.filter(codename="add_user").afirst(), True),
    ],
    ids=["afirst", "aiterator", "related-manager"],
)
async def test_router_is_asked_on_the_thread_of_the_loop(
    transactional_db, settings, query, asked_on_the_loop
):
    """Django asks its router on the loop's thread for some queries, and on another for the rest."""
    kind = await ContentType.objects.aget(app_label="auth", model="user")
    settings.DATABASE_ROUTERS = [NotingRouter()]
    NotingRouter.threads.clear()
    await query(kind)
    assert (threading.get_ident() in NotingRouter.threads) is asked_on_the_loop
    assert NotingRouter.threads


async def test_signal_sent_in_a_coroutine(ada):
    """What send() calls in a coroutine may not query; what asend() calls may, async or not."""
    signal, found = Signal(), []

    def plain(sender, **kwargs):
        found.append(User.objects.get().username)

    async def asynchronous(sender, **kwargs):
        found.append((await User.objects.aget()).username)

    signal.connect(plain)
    signal.connect(asynchronous)
    with pytest.raises(SynchronousOnlyOperation):
        signal.send(None)
    await signal.asend(None)
    assert found == ["ada", "ada"]


async def test_paginator_in_a_coroutine(ada):
    """A paginator queries where it is used; Django's async one, where there is one, does not."""
    users = User.objects.order_by("pk")
    with pytest.raises(SynchronousOnlyOperation):
        Paginator(users, 20).page(1)
    page = await database_sync_to_async(lambda: list(Paginator(users, 20).page(1)))()
    assert page == [ada]
    if django.VERSION >= (6, 0):
        page = await paginator.AsyncPaginator(users, 20).apage(1)
        assert [user async for user in page] == [ada]


if django.VERSION >= (6, 0):  # before, the expression stays on the object

    async def test_field_that_an_expression_set(ada):
        """What an expression saved is known at once, but deferred where nothing is returned."""
        ada.last_name = Concat(F("username"), Value("!"))
        await ada.asave()
        if CHOICE == "mariadb":
            with pytest.raises(SynchronousOnlyOperation):
                ada.last_name  # noqa: B018 # reading it queries
            await ada.arefresh_from_db(fields=["last_name"])
        assert ada.last_name == "ada!"


@pytest.mark.parametrize(("reads_again", "saved"), [(False, "!!"), (True, "!")])
async def test_bulk_update_leaves_the_expression(ada, reads_again, saved):
    """A save() after bulk_update() applies the expression again, unless the field was read."""
    ada.last_name = Concat(F("last_name"), Value("!"))
    await User.objects.abulk_update([ada], ["last_name"])
    if reads_again:
        await ada.arefresh_from_db(fields=["last_name"])
    await ada.asave()
    assert await User.objects.values_list("last_name", flat=True).aget() == saved


if django.VERSION >= (6, 1):  # the first with fetch modes

    async def test_fetch_mode_that_raises(transactional_db):
        """With FETCH_RAISE, a lazy field raises an error of its own, on every thread."""
        permissions = Permission.objects.order_by("pk")
        with pytest.raises(SynchronousOnlyOperation):
            (await permissions.afirst()).content_type  # noqa: B018 # reading it queries
        with pytest.raises(FieldFetchBlocked):
            (await permissions.fetch_mode(FETCH_RAISE).afirst()).content_type  # noqa: B018

    @pytest.mark.parametrize("relation", ["permission_set", "user_permissions"])
    async def test_prefetch_has_a_fetch_mode_of_its_own(ada, relation):
        """What is prefetched along a reverse or many-to-many relation does not get the mode."""
        permission = await Permission.objects.select_related("content_type").afirst()
        await ada.user_permissions.aadd(permission)
        start = {"permission_set": permission.content_type, "user_permissions": ada}[relation]
        given = Prefetch(relation, Permission.objects.fetch_mode(FETCH_RAISE))
        for prefetch, error in [(relation, SynchronousOnlyOperation), (given, FieldFetchBlocked)]:
            queryset = type(start).objects.fetch_mode(FETCH_RAISE).prefetch_related(prefetch)
            found = getattr(await queryset.aget(pk=start.pk), relation).all()[0]
            found.content_type_id = 0  # another one than was loaded
            with pytest.raises(error):
                found.content_type  # noqa: B018 # reading it queries


# What a thread knows of its caller.


async def test_language_and_time_zone_reach_the_thread():
    """The bridge carries the language and the time zone of its caller; ``to_thread`` does not."""

    def know():
        return translation.get_language(), timezone.get_current_timezone_name()

    elsewhere = know()
    with translation.override("de"), timezone.override("Asia/Tokyo"):
        assert await database_sync_to_async(know)() == ("de", "Asia/Tokyo")
        assert await asyncio.to_thread(know) == elsewhere != ("de", "Asia/Tokyo")


# Database connections.


async def test_open_consumer_holds_no_worker(ada, load_example):
    """A consumer that is open takes a worker for its call, and holds none between calls."""
    module = load_example("database_access/inline")
    client = ApplicationCommunicator(
        module.GreetingConsumer.as_asgi(), {"type": "websocket", "path": "/"}
    )
    await client.send_input({"type": "websocket.connect"})
    await client.receive_output(GUARD)
    await client.receive_output(GUARD)
    assert not client.future.done()
    assert (stats().calls, stats().threads, stats().idle) == (1, 1, 1)
    await client.send_input({"type": "websocket.disconnect", "code": 1000})
    await client.wait(GUARD)


async def test_connection_without_age_is_kept(transactional_db, connection_settings):
    """With ``CONN_MAX_AGE`` at ``None`` a connection has no age at which it is closed."""
    connection_settings(CONN_MAX_AGE=None)

    def get_age_limit():
        return get_open_connection(), connection.close_at

    (first, first_limit), (second, second_limit) = [
        await database_sync_to_async(get_age_limit)() for _ in range(2)
    ]
    assert first is second
    assert (first_limit, second_limit) == (None, None)


def test_default_conn_max_age():
    """A database whose settings say nothing else has a ``CONN_MAX_AGE`` of 0."""
    handler = ConnectionHandler({"default": {"ENGINE": "django.db.backends.sqlite3"}})
    assert handler.settings["default"]["CONN_MAX_AGE"] == 0


def get_open_connection():
    """Return the driver's connection of the calling thread."""
    connection.ensure_connection()
    return connection.connection


async def test_async_methods_of_the_orm_use_the_thread_of_asgiref(ada):
    """``aget`` and its kin run on asgiref's one thread, not on a worker."""
    threads = []

    def note_thread(**kwargs):
        threads.append(threading.get_ident())

    post_init.connect(note_thread, sender=User)
    try:
        await User.objects.aget(username="ada")
    finally:
        post_init.disconnect(note_thread, sender=User)
    assert threads == [await sync_to_async(threading.get_ident)()]


# Cleaning up by hand.


async def test_old_connection_of_asgiref_stays_open(ada, age_connection_of_asgiref):
    """``aget`` and its kin go on with a connection that is older than ``CONN_MAX_AGE``."""
    old = await age_connection_of_asgiref()
    await User.objects.aget(username="ada")
    assert await sync_to_async(lambda: connection.connection)() is old


async def test_old_connection_of_asgiref_is_closed(ada, age_connection_of_asgiref):
    """``aclose_old_connections()`` closes the old connection of ``aget`` and its kin."""
    await age_connection_of_asgiref()
    await aclose_old_connections()
    assert await sync_to_async(lambda: connection.connection)() is None


@pytest.fixture
def age_connection_of_asgiref():
    """Return a coroutine function that lets the connection on asgiref's thread grow too old."""

    def age():
        opened = get_open_connection()
        connection.close_at = time.monotonic()
        return opened

    return sync_to_async(age)


async def test_channels_cleans_up_before_async_handlers(monkeypatch):
    """Channels closes old connections before each handler of an ``AsyncConsumer``, not after it."""
    events = []
    # Its own: BridgeMiddleware puts the bridge's there.
    aclose = channels_db.aclose_old_connections
    monkeypatch.setattr(channels_consumer, "aclose_old_connections", aclose)
    monkeypatch.setattr(channels_db, "close_old_connections", lambda: events.append("clean"))

    class Consumer(AsyncConsumer):
        async def test_message(self, event):
            events.append("handle")

        async def test_stop(self, event):
            events.append("stop")
            raise StopConsumer

    await listen(Consumer, "test.message", "test.stop")
    assert events == ["clean", "handle", "clean", "stop"]


async def test_async_handlers_wait_for_the_thread_of_asgiref():
    """A message to an ``AsyncConsumer``, even without queries, waits for asgiref's thread."""
    events = []
    started, release = threading.Event(), threading.Event()

    def hold_the_thread():
        started.set()
        assert release.wait(GUARD)
        events.append("thread is free")

    class Consumer(AsyncConsumer):
        async def test_stop(self, event):
            events.append("message is handled")
            raise StopConsumer

    holding = asyncio.create_task(sync_to_async(hold_the_thread)())
    await asyncio.to_thread(started.wait, GUARD)
    listening = asyncio.create_task(listen(Consumer, "test.stop"))
    await many_turns_of_the_loop()
    release.set()
    await asyncio.gather(holding, listening)
    assert events == ["thread is free", "message is handled"]


# Without the bridge, on the installed releases.


async def test_channels_db_runs_on_one_thread():
    """Twenty concurrent calls of ``channels.db`` run on one thread."""
    assert len(await threads_of_channels()) == 1


async def test_channels_db_runs_on_one_thread_of_a_request(settings):
    """Twenty concurrent calls of ``channels.db`` in an async view run on one thread."""

    async def count_threads(request):
        return HttpResponse(str(len(await threads_of_channels())))

    settings.ROOT_URLCONF = (path("", count_threads),)
    assert await get_from_asgi_handler() == b"1"


async def threads_of_channels():
    """Return the threads on which twenty concurrent calls of ``channels.db`` run."""
    all_are_made = threading.Event()

    def wait_for_the_others():
        assert all_are_made.wait(GUARD)
        return threading.get_ident()

    call = channels_db.database_sync_to_async(wait_for_the_others)
    calls = [asyncio.create_task(call()) for _ in range(20)]
    await asyncio.sleep(0)  # the tasks make their calls
    all_are_made.set()
    return set(await asyncio.gather(*calls))


async def get_from_asgi_handler():
    """Return the answer of Django's ASGI handler, without a test client around it."""
    client = ApplicationCommunicator(
        ASGIHandler(), {"type": "http", "method": "GET", "path": "/", "headers": []}
    )
    await client.send_input({"type": "http.request"})
    start = await client.receive_output(GUARD)
    assert start["status"] == 200
    body = await client.receive_output(GUARD)
    await client.wait(GUARD)
    return body["body"]


@pytest.mark.parametrize("package", [asgiref, channels])
def test_asgi_threads_is_read_by_nothing(package):
    """The name ``ASGI_THREADS`` stands in no module of asgiref or Channels."""
    modules = list(Path(package.__file__).parent.rglob("*.py"))
    assert modules
    assert [path for path in modules if "ASGI_THREADS" in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("value", ["1", "10"])
def test_asgi_threads_changes_nothing(run_script, value):
    """Whatever ``ASGI_THREADS`` says, ``channels.db`` runs its calls on one thread."""
    assert run_script(COUNT_THREADS_OF_CHANNELS, ASGI_THREADS=value) == "1\n"


COUNT_THREADS_OF_CHANNELS = """
import asyncio, threading
from channels.db import database_sync_to_async
from django.conf import settings

settings.configure()

all_are_made = threading.Event()

@database_sync_to_async
def wait_for_the_others():
    assert all_are_made.wait(30)
    return threading.get_ident()

async def main():
    calls = [asyncio.create_task(wait_for_the_others()) for _ in range(20)]
    await asyncio.sleep(0)  # the tasks make their calls
    all_are_made.set()
    print(len(set(await asyncio.gather(*calls))))

asyncio.run(main())
"""


async def test_threads_of_the_loops_default_executor():
    """Calls with ``thread_sensitive=False`` share ``min(32, CPUs + 4)`` threads, not CPUs * 5."""
    cpus = getattr(os, "process_cpu_count", os.cpu_count)()
    expected = min(32, cpus + 4)
    all_are_running = threading.Barrier(expected)

    def meet():
        all_are_running.wait(GUARD)
        return threading.get_ident()

    call = channels_db.database_sync_to_async(meet, thread_sensitive=False)
    # Twice as many calls as threads: the second half needs the threads of the first.
    threads = await asyncio.gather(*[call() for _ in range(2 * expected)])
    assert len(set(threads)) == expected


async def test_requests_leave_connections_behind(ada, settings, connection_settings):
    """Under Django's ASGI handler with ``CONN_MAX_AGE`` set, each request opens a connection.

    It stays open when the request is over and its thread has ended, and no other request uses it.
    """
    settings.ROOT_URLCONF = (path("", count_users),)
    connection_settings(CONN_MAX_AGE=60)
    opened = []

    def note_connection(connection, **kwargs):
        connection.inc_thread_sharing()  # or this thread could not close it
        opened.append((connection, threading.current_thread()))

    connection_created.connect(note_connection)
    try:
        for _ in range(3):
            assert await get_from_asgi_handler() == b"1"
        assert [thread.is_alive() for _, thread in opened] == [False, False, False]
        assert all(connection.connection is not None for connection, _ in opened)
        assert len({id(connection.connection) for connection, _ in opened}) == 3
    finally:
        connection_created.disconnect(note_connection)
        for connection_left_behind, _ in opened:
            connection_left_behind.connection.close()


async def count_users(request):
    """Answer with Django's own async ORM, which uses the request's thread."""
    return HttpResponse(str(await User.objects.acount()))
