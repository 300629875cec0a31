"""Messages that people look up where their code does not look async, or is not awaited."""

import asyncio
import gc
import importlib
import inspect
import operator
from concurrent.futures import ThreadPoolExecutor

import pytest
import uvicorn
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels.consumer import AsyncConsumer
from channels.routing import ProtocolTypeRouter
from django import forms
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.core.exceptions import SynchronousOnlyOperation
from django.core.wsgi import get_wsgi_application
from django.db import DatabaseError, connection, connections, transaction
from django.http import HttpResponse
from django.test import AsyncClient, Client
from django.urls import path
from django.utils.decorators import sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin
from greenlet import getcurrent, greenlet

from ormbridge import BridgeMiddleware, atomic, database_sync_to_async, stream
from tests.core.gate import GUARD
from tests.settings import CHOICE, DATABASES
from tests.support.messages import SAYS, is_answered, is_known, is_on_the_page
from tests.support.ways import count_and_close

ASYNC_CONTEXT = r"^You cannot call this from an async context"


# Code that runs on the thread of an event loop, and does not know.


async def one():
    return 1


def beside_a_loop():
    """Try to query, and to call a coroutine, while another greenlet is in an event loop."""
    here = getcurrent()

    async def wait():
        here.switch()  # as gevent does where somebody waits

    other = greenlet(asyncio.run)
    other.switch(wait())
    with pytest.raises(SynchronousOnlyOperation, match=ASYNC_CONTEXT):
        User.objects.count()
    with pytest.raises(RuntimeError, match=r"^You cannot use AsyncToSync in the same thread"):
        async_to_sync(one)()
    with ThreadPoolExecutor() as pool:
        assert pool.submit(count_and_close).result() == 1
        assert pool.submit(async_to_sync(one)).result() == 1
    other.switch()
    assert count_and_close() == 1


def test_loop_of_another_greenlet(ada):
    """While one greenlet is in an event loop, all others of its thread are refused."""
    # On a thread of its own: the tests that use a browser leave a loop running on the first one.
    with ThreadPoolExecutor() as pool:
        pool.submit(beside_a_loop).result()


QUERIES = """
from django.contrib.auth.models import User

names = [user.username for user in User.objects.all()]
urlpatterns = []
"""


async def test_module_that_queries_as_it_is_imported(ada, tmp_path, monkeypatch, settings):
    """Under ASGI the first request imports the URLconf, on the thread of the event loop."""
    for name in ("urls_that_query", "asgi_that_queries"):
        (tmp_path / f"{name}.py").write_text(QUERIES, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    settings.ROOT_URLCONF = "urls_that_query"
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    with pytest.raises(SynchronousOnlyOperation, match=ASYNC_CONTEXT):
        await AsyncClient().get("/")
    # To look for a page of errors, Django has imported it once more, on a thread.
    assert (await AsyncClient().get("/")).status_code == 404
    await asyncio.to_thread(lambda: connection.close())
    # What a server imports in its loop is refused, too.
    with pytest.raises(SynchronousOnlyOperation, match=ASYNC_CONTEXT):
        importlib.import_module("asgi_that_queries")


async def test_choices_that_are_a_function(ada):
    """Choices that are a function query when the form is made, where that may be done."""

    def names():
        return [(each.username, each.username) for each in User.objects.all()]

    class Choice(forms.Form):
        name = forms.ChoiceField(choices=names)

    @database_sync_to_async
    def is_valid(**data):
        return Choice(data).is_valid()

    assert [await is_valid(name="ada"), await is_valid(name="bob")] == [True, False]


# What is not awaited.


class Mixed(MiddlewareMixin):
    """Uses what it takes for a response."""

    use = None

    def __call__(self, request):
        response = self.get_response(request)
        try:
            type(self).use(response)
        finally:
            if asyncio.iscoroutine(response):
                response.close()
        return response


class Plain:
    """Does the same, and is of no class that says it were async."""

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        response = self.get_response(request)
        response.headers["X-Name"] = "ada"
        return response


@sync_and_async_middleware
def both(get_response):
    """Do the same in both forms."""

    def middleware(request):
        response = get_response(request)
        response.headers["X-Name"] = "ada"
        return response

    async def amiddleware(request):
        response = await get_response(request)
        response.headers["X-Name"] = "ada"
        return response

    return amiddleware if iscoroutinefunction(get_response) else middleware


USES = {
    "headers": operator.attrgetter("headers"),
    "status-code": operator.attrgetter("status_code"),
    "has-header": lambda response: response.has_header("Vary"),
    "item": lambda response: operator.setitem(response, "Vary", "Cookie"),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_middleware_that_does_not_await(settings, monkeypatch, use):
    """Under ASGI, what derives from MiddlewareMixin and does not await gets a coroutine."""
    monkeypatch.setattr(Mixed, "use", staticmethod(use))
    settings.ROOT_URLCONF = (path("", lambda request: HttpResponse("hello")),)
    settings.MIDDLEWARE = [f"{__name__}.Mixed"]
    with pytest.raises((AttributeError, TypeError)) as refused:
        await AsyncClient().get("/")
    is_known(refused.value)
    assert Client().get("/").status_code == 200


@pytest.mark.parametrize("name", ["Plain", "both"])
async def test_middleware_that_django_adapts_or_that_awaits(settings, name):
    """Without that class, or in both forms, the middleware gets the response."""
    settings.ROOT_URLCONF = (path("", lambda request: HttpResponse("hello")),)
    settings.MIDDLEWARE = [f"{__name__}.{name}"]
    assert (await AsyncClient().get("/")).headers["X-Name"] == "ada"


async def test_second_brackets_are_missing(ada):
    """What makes a function async is called, and only that is awaited."""
    for make in (sync_to_async, database_sync_to_async):
        with pytest.raises(TypeError) as refused:
            await make(User.objects.count)
        is_known(refused.value)
    assert await database_sync_to_async(User.objects.count)() == 1


async def test_querysets_that_are_gathered(ada):
    """gather() takes no queryset; it takes the calls that read one."""
    with pytest.raises(TypeError) as refused:
        await asyncio.gather(User.objects.none())
    is_known(refused.value)
    assert await asyncio.gather(User.objects.acount(), User.objects.aexists()) == [1, True]


async def test_application_under_the_other_kind_of_server():
    """What an ASGI application says to a WSGI server, and a WSGI application to an ASGI server."""
    django = get_asgi_application()
    for application in (django, ProtocolTypeRouter({"http": django}), BridgeMiddleware(django)):
        with pytest.raises(TypeError) as refused:
            application({"REQUEST_METHOD": "GET"}, print)
        is_known(refused.value)
    config = uvicorn.Config(get_wsgi_application(), lifespan="off")
    config.load()
    scope = {"type": "http", "client": None, "scheme": "http", "headers": []}
    with pytest.raises(TypeError) as refused:
        await config.loaded_app(scope, print, print)
    is_known(refused.value)


# Consumers under test.


class Consumer(AsyncConsumer):
    """Answers when it may, or fails."""

    allowed = None

    async def ask(self, message):
        await self.allowed.wait()
        await self.send({"type": "answer"})

    async def fail(self, message):
        await User.objects.aget(username="nobody")


def communicator():
    Consumer.allowed = asyncio.Event()
    return ApplicationCommunicator(Consumer.as_asgi(), {"type": "test"})


async def test_communicator_that_waits_too_short():
    """It gives up after its timeout, and cancels the consumer: the next call says so."""
    impatient = communicator()
    await impatient.send_input({"type": "ask"})
    with pytest.raises(TimeoutError):
        await impatient.receive_output(timeout=0.01)
    with pytest.raises(asyncio.CancelledError):
        await impatient.receive_output()
    assert inspect.signature(impatient.receive_output).parameters["timeout"].default == 1


async def test_communicator_that_waits():
    """With a longer timeout it gets the answer."""
    patient = communicator()
    await patient.send_input({"type": "ask"})
    answer = asyncio.create_task(patient.receive_output(timeout=GUARD))
    await asyncio.sleep(0)
    Consumer.allowed.set()
    assert await answer == {"type": "answer"}
    patient.future.cancel()
    await asyncio.wait([patient.future])


async def test_communicator_of_a_consumer_that_fails(transactional_db):
    """What the consumer raises comes out of the communicator, and no timeout."""
    failing = communicator()
    await failing.send_input({"type": "fail"})
    await asyncio.wait([failing.future])
    with pytest.raises(User.DoesNotExist):
        await failing.receive_output(timeout=GUARD)


# Rows and connections.


async def test_row_that_is_gone(ada):
    """A save that has to meet a row fails where it is gone; aupdate() says that it met none."""
    kept = await User.objects.aget(pk=ada.pk)
    await User.objects.filter(pk=ada.pk).adelete()  # somebody else
    for how in ({"update_fields": ["first_name"]}, {"force_update": True}):
        with pytest.raises(DatabaseError) as refused:
            await kept.asave(**how)
        is_answered(refused.value)
    assert await User.objects.filter(pk=kept.pk).aupdate(first_name="Ada") == 0
    await kept.asave()
    assert await User.objects.acount() == 1  # and so it is made anew


async def test_iterator_of_rows_with_related_ones(ada):
    """An iterator() asks for a chunk_size after prefetch_related(); the others have their own."""
    users = User.objects.prefetch_related("groups")

    @database_sync_to_async
    def read(**options):
        return [user.username for user in users.iterator(**options)]

    with pytest.raises(ValueError, match="chunk_size") as refused:
        await read()
    is_known(refused.value)
    assert await read(chunk_size=2000) == ["ada"]
    assert [user.username async for user in users.aiterator()] == ["ada"]
    assert [user.username async for user in stream(users)] == ["ada"]


async def test_connection_of_a_thread_of_ones_own(ada, connection_settings):
    """Nobody closes the connection of another thread, where that does not do so itself."""
    connection_settings("default", CONN_MAX_AGE=0)

    def count():
        assert User.objects.count() == 1
        return connections["default"]

    with ThreadPoolExecutor(1) as pool:
        run = asyncio.get_running_loop().run_in_executor
        left = await run(pool, count)
        assert left.connection is not None
        assert await run(pool, count_and_close) == 1
        assert left.connection is None
    worker = await database_sync_to_async(count)()
    assert worker.connection is None


def begin():
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")


def save():
    with transaction.atomic():
        User.objects.create(username="ada")


def begin_and_leave():
    transaction.set_autocommit(False)
    User.objects.count()
    transaction.set_autocommit(True)


def begin_and_end():
    transaction.set_autocommit(False)
    User.objects.count()
    transaction.commit()
    transaction.set_autocommit(True)


def begin_and_save():
    begin()
    try:
        with pytest.raises(DatabaseError) as refused:
            save()
        is_answered(refused.value)
    finally:
        connection.close()


if CHOICE != "mariadb":  # there a second transaction ends the first one, without a word

    async def test_transaction_that_django_does_not_know(transactional_db):
        """After a BEGIN of one's own, atomic() is refused on that thread, and on no worker."""
        await asyncio.to_thread(begin_and_save)
        gc.collect()  # on Python 3.11, SQLite's connection lives as long as the cursor of an error
        await database_sync_to_async(begin)()
        await database_sync_to_async(save)()
        assert await User.objects.acount() == 1
        async with atomic():
            await User.objects.acreate(username="bob")


PSYCOPG2 = """
import psycopg2

@mistake
def autocommit_in_a_transaction():
    one = psycopg2.connect(
        host="{HOST}", port="{PORT}", user="{USER}", password="{PASSWORD}", dbname="postgres"
    )
    one.cursor().execute("SELECT 1")
    one.autocommit = True
"""

if CHOICE == "postgresql":

    async def test_autocommit_in_a_transaction(transactional_db, caplog):
        """It cannot be set in a transaction, and can when that was committed."""
        with pytest.raises(DatabaseError) as refused:
            await database_sync_to_async(begin_and_leave)()
        is_answered(refused.value)
        await database_sync_to_async(begin_and_end)()

    def test_autocommit_in_a_transaction_of_psycopg2(run_script, db):
        """What psycopg 2 says to the same."""
        is_on_the_page(run_script((SAYS + PSYCOPG2).format(**DATABASES["default"])), 1)
