"""A cancelled call's statement is cancelled too, on PostgreSQL; nothing else ever is."""

# What a block does, and raises, is more than one statement.

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.generic.websocket import WebsocketConsumer
from django.contrib.auth.models import Group, User
from django.core.asgi import get_asgi_application
from django.core.signals import request_finished
from django.db import connection, connections, transaction
from django.db.models import Model, Prefetch, prefetch_related_objects
from django.db.models.expressions import RawSQL
from django.db.utils import OperationalError
from django.http import HttpResponse
from django.urls import path

from ormbridge import (
    BridgeMiddleware,
    database_sync_to_async,
    stats,
    stream,
)
from ormbridge.core.call import Call
from ormbridge.core.mailbox import Mailbox
from ormbridge.postgres import canceller as canceller_module
from ormbridge.postgres.canceller import may_be_stopped, outlast
from tests.core.gate import GUARD
from tests.core.support import until
from tests.settings import CHOICE
from tests.support.canceller import cancelled, cancellers, in_context, pid, postgresql
from tests.support.http import connect, request

pytestmark = pytest.mark.django_db(transaction=True)


# What is stopped


@postgresql
async def test_wait_for_stops_the_statement(outside, one_worker):
    """A call given up by wait_for frees its worker: the server stops the statement."""
    await database_sync_to_async(pid)()  # connected: not in the time given
    call = asyncio.create_task(asyncio.wait_for(database_sync_to_async(User.objects.count)(), 0.2))
    await asyncio.wait([call], timeout=GUARD)
    with pytest.raises(TimeoutError):
        call.result()
    before = await asyncio.wait_for(database_sync_to_async(pid)(), GUARD)
    assert outside.waiting() == 0
    assert await database_sync_to_async(pid)() == before
    assert stats().discarded == 0
    await until(lambda: cancellers() == [])


async def iterate(rows):
    return [row async for row in rows]


METHODS = {
    "acount": lambda user: User.objects.acount(),
    "aget": lambda user: User.objects.aget(pk=user.pk),
    "acreate": lambda user: User.objects.acreate(username="second"),
    "abulk_create": lambda user: User.objects.abulk_create([User(username="second")]),
    "aupdate": lambda user: User.objects.filter(pk=user.pk).aupdate(username="second"),
    "async for": lambda user: iterate(User.objects.all()),
    "async for raw": lambda user: iterate(User.objects.raw("SELECT * FROM auth_user")),
    "aiterator": lambda user: iterate(User.objects.all().aiterator()),
    "asave": lambda user: user.asave(),
    "adelete": lambda user: user.adelete(),
    "arefresh_from_db": lambda user: user.arefresh_from_db(),
    "aadd": lambda user: user.groups.aadd(1),
    "aset": lambda user: user.groups.aset([]),
    "related acreate": lambda user: user.groups.acreate(name="first"),
    "related aclear": lambda user: user.groups.aclear(),
    "stream": lambda user: iterate(stream(User.objects.all())),
    "bridge": lambda user: database_sync_to_async(User.objects.count)(),
}


@postgresql
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("holds", [True, False], ids=["request", "socket"])
async def test_methods_of_django_are_stopped(outside, one_worker, method, holds):
    """The statement of a cancelled `a`-method stops, in a request and in a socket."""
    outside.let_go()
    user = await database_sync_to_async(User.objects.create)(username="ada")
    outside.hold()
    async with in_context(holds):
        call = asyncio.create_task(METHODS[method](user))
        await outside.sees(1)
        await cancelled(call)
        assert await asyncio.wait_for(database_sync_to_async(len)("abc"), GUARD) == 3
    assert outside.waiting() == 0


@postgresql
async def test_following_statements_of_the_function_are_stopped(outside, one_worker):
    """Requests go on until the function has returned: what it does next is stopped too."""
    stopped = []

    def stubborn():
        for _ in range(3):
            try:
                User.objects.count()
            except OperationalError as error:
                stopped.append(str(error).strip())

    call = asyncio.create_task(database_sync_to_async(stubborn)())
    await outside.sees(1)
    await cancelled(call)
    await asyncio.wait_for(database_sync_to_async(len)(""), GUARD)
    assert stopped == ["canceling statement due to user request"] * 3


@postgresql
async def test_statement_that_is_over_sooner_is_done(outside, one_worker, monkeypatch):
    """A statement that ends before the next request is not stopped."""
    stopped, lock = [], threading.Lock()
    look = canceller_module._cancel_statements

    def look_until_stopped(*args):
        with lock:
            if not stopped:
                look(*args)

    def stubborn():
        with pytest.raises(OperationalError):
            User.objects.count()
        with lock:
            stopped.append(True)
        outside.let_go()
        User.objects.create(username="ann")

    monkeypatch.setattr(canceller_module, "_cancel_statements", look_until_stopped)
    call = asyncio.create_task(database_sync_to_async(stubborn)())
    await outside.sees(1)
    await cancelled(call)
    assert (await database_sync_to_async(User.objects.get)()).username == "ann"


@postgresql
async def test_error_of_a_stopped_statement_is_for_debugging_only(outside, one_worker, caplog):
    """Nobody hears of the error that the stopped statement raised, but the log for debugging."""
    caplog.set_level(logging.DEBUG, "ormbridge")
    reported = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    call = asyncio.create_task(database_sync_to_async(User.objects.count)())
    await outside.sees(1)
    await cancelled(call)
    await until(lambda: "canceling statement" in caplog.text)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert reported == []


# What is not


async def test_database_whose_driver_is_not_installed(gate, one_worker, monkeypatch):
    """A cancellation goes on, whatever else stands in settings.DATABASES and is not in use."""
    other = {**connections.settings["default"], "ENGINE": "nothing.like_it"}
    monkeypatch.setitem(connections.settings, "a", other)
    monkeypatch.setattr(connections, "settings", dict(sorted(connections.settings.items())))
    call = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    call.cancel()
    await asyncio.wait([call], timeout=GUARD)
    gate.open.set()
    assert call.cancelled()


async def test_elsewhere_the_thread_runs_on(gate, one_worker, monkeypatch):
    """Where the database is not PostgreSQL, the function runs on, and no thread tries to stop it.

    On PostgreSQL the thread runs on too as long as it runs Python, and no statement.
    """
    sent = []
    if CHOICE == "postgresql":
        monkeypatch.setattr(
            canceller_module, "_cancel_statement", lambda raw, timeout: sent.append(raw)
        )

    done = []

    def work():
        User.objects.count()
        gate()
        done.append("to its end")

    call = asyncio.create_task(database_sync_to_async(work)())
    await gate.entered()
    await cancelled(call)
    assert len(cancellers()) == (CHOICE == "postgresql")
    gate.open.set()
    await database_sync_to_async(len)("")
    assert done == ["to its end"]
    assert sent == []


@postgresql
async def test_sync_view_runs_to_its_end(outside, settings):
    """A sync view whose client leaves completes its work, and no statement of it is stopped."""
    done = threading.Event()

    def view(request):
        User.objects.create(username="first")
        User.objects.create(username="second")
        done.set()
        return HttpResponse()

    settings.ROOT_URLCONF = (path("", view),)
    settings.MIDDLEWARE = ()
    settings.ALLOWED_HOSTS = ["*"]
    client = request(BridgeMiddleware(get_asgi_application()))
    await client.send_input({"type": "http.request"})
    await outside.sees(1)
    await client.send_input({"type": "http.disconnect"})
    await asyncio.wait([client.future], timeout=GUARD)
    assert client.future.done()
    assert cancellers() == []
    assert outside.waiting() == 1
    outside.let_go()
    assert await asyncio.to_thread(done.wait, GUARD)
    assert await database_sync_to_async(User.objects.count)() == 2


@postgresql
async def test_async_view_is_stopped(outside, settings, one_worker):
    """An async view whose client leaves gives its worker back: its statement is stopped."""

    async def view(request):
        return HttpResponse(await User.objects.acount())

    settings.ROOT_URLCONF = (path("", view),)
    settings.MIDDLEWARE = ()
    settings.ALLOWED_HOSTS = ["*"]
    client = request(BridgeMiddleware(get_asgi_application()))
    await client.send_input({"type": "http.request"})
    await outside.sees(1)
    await client.send_input({"type": "http.disconnect"})
    await asyncio.wait([client.future], timeout=GUARD)
    assert await asyncio.wait_for(database_sync_to_async(len)("abc"), GUARD) == 3
    assert outside.waiting() == 0


@postgresql
async def test_handler_of_a_sync_consumer_runs_to_its_end(outside):
    """The handler of a SyncConsumer completes its work when the server drops the socket."""
    done = threading.Event()

    class Consumer(WebsocketConsumer):
        def receive(self, text_data=None, bytes_data=None):
            User.objects.create(username="first")
            User.objects.create(username="second")
            done.set()

    socket = await connect(BridgeMiddleware(Consumer.as_asgi()))
    await socket.send_input({"type": "websocket.receive", "text": ""})
    await outside.sees(1)
    socket.future.cancel()
    await asyncio.wait([socket.future], timeout=GUARD)
    assert socket.future.done()
    assert cancellers() == []
    outside.let_go()
    assert await asyncio.to_thread(done.wait, GUARD)
    assert await database_sync_to_async(User.objects.count)() == 2


@postgresql
@pytest.mark.parametrize("how", ["sync_to_async", "thread_sensitive", "executor"])
async def test_other_functions_sent_by_asgiref_run_to_their_end(outside, how):
    """What asgiref places of your own functions is not stopped: only `a`-methods are."""
    done = threading.Event()

    def work():
        User.objects.create(username="first")
        done.set()

    with ThreadPoolExecutor(1) as threads:
        send = {
            "sync_to_async": sync_to_async(work),
            "thread_sensitive": database_sync_to_async(work, thread_sensitive=True),
            "executor": database_sync_to_async(work, thread_sensitive=False, executor=threads),
        }[how]
        async with in_context():
            call = asyncio.create_task(send())
            await outside.sees(1)
            await cancelled(call)
        assert cancellers() == []
        outside.let_go()
        assert await asyncio.to_thread(done.wait, GUARD)
        threads.submit(connections.close_all)


@postgresql
async def test_statements_of_what_a_function_awaits_are_not_cancelled(outside, looks):
    """A function that goes on with async_to_sync is not stopped: the thread is a frame's now."""
    stopped, quiet = threading.Event(), threading.Event()

    def work():
        try:
            User.objects.count()
        except OperationalError:
            stopped.set()
            assert quiet.wait(GUARD)
            async_to_sync(go_on)()

    async def go_on():
        await User.objects.acreate(username="ada")

    call = asyncio.create_task(database_sync_to_async(work)())
    await outside.sees(1)
    await cancelled(call)
    await until(stopped.is_set)
    await looks(2)  # one request more may be on its way, which names no statement
    quiet.set()
    await outside.sees(1)
    await looks(5)
    outside.let_go()
    await until(lambda: stats().idle == 1)
    assert await database_sync_to_async(User.objects.count)() == 1


@postgresql
def test_calls_on_a_frame_run_to_their_end(outside):
    """A call on the thread of a synchronous frame is not stopped: the thread is the frame's."""

    async def inner():
        call = asyncio.create_task(database_sync_to_async(User.objects.create)(username="ada"))
        await asyncio.to_thread(async_to_sync(outside.sees), 1)
        await cancelled(call)
        assert cancellers() == []
        assert outside.waiting() == 1
        outside.let_go()

    async_to_sync(inner)()
    assert User.objects.count() == 1


@postgresql
async def test_what_a_function_awaits_is_left_to_asgiref(outside):
    """While a function awaits a coroutine through async_to_sync, no statement is cancelled."""
    survived = asyncio.Event()

    async def inner():
        call = asyncio.ensure_future(database_sync_to_async(User.objects.create)(username="ada"))
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            survived.set()
            return await call

    call = asyncio.create_task(database_sync_to_async(async_to_sync(inner))())
    await outside.sees(1)
    call.cancel()
    await asyncio.wait_for(survived.wait(), GUARD)
    assert cancellers() == []
    outside.let_go()
    assert (await asyncio.wait_for(call, GUARD)).username == "ada"


async def test_only_methods_of_django_are_stoppable(settings):
    """Of what asgiref submits, Django's `a`-methods may be stopped; nothing else, in doubt."""

    class Counter(User):
        class Meta:
            proxy = True
            app_label = "tests"

        def clear(self):
            """Do what looks like a method of a related manager."""

    user = Counter(pk=1)
    rows = User.objects.all()
    for func in (rows.get, rows._fetch_all, user.save, user.groups.add, user.groups.clear):
        assert may_be_stopped(func), func
    assert may_be_stopped(prefetch_related_objects)
    for func in (
        user.clear,
        user.check_password,
        rows.filter,
        User.objects.get_queryset,
        HttpResponse().close,
        request_finished.send,
        transaction.atomic().__enter__,
        transaction.atomic().__exit__,
        transaction.commit,
        connection.close,
        len,
        Model,
    ):
        assert not may_be_stopped(func), func


@postgresql
@pytest.mark.parametrize("where", ["outside", "request", "socket"])
async def test_read_ahead_is_stopped_when_its_loop_is_left(outside, one_worker, where):
    """A loop that is left lets its worker go at once, whatever its next rows wait for."""

    def make():
        for name in ["first", "second"]:
            User.objects.create(username=name).groups.create(name=name)

    outside.let_go()
    await database_sync_to_async(make)()
    # The groups of the second user wait for who has the lock, and never lets it go. A row that
    # waits would do so from the beginning: the server makes all of them as the cursor is opened.
    outside.holder.execute("SELECT pg_advisory_lock(7)")
    held = RawSQL("CASE name WHEN 'second' THEN pg_advisory_xact_lock(7)::text END", [])
    groups = Prefetch("groups", Group.objects.annotate(held=held))
    users = User.objects.order_by("username").prefetch_related(groups)
    around = {"request": in_context(holds=True), "socket": in_context()}
    async with around.get(where, nullcontext()):
        async for user in stream(users, chunk_size=1):
            assert user.username == "first"
            await outside.sees(1)
            break
        counted = database_sync_to_async(User.objects.count)()
        assert await asyncio.wait_for(counted, GUARD) == 2
    assert outside.waiting() == 0


async def test_cancelled_as_the_end_of_a_block_is_there():
    """What has its outcome by then is not looked after any more, and so nothing of it is kept."""
    mailbox = Mailbox(asyncio.get_running_loop())
    call = Call(int, "the end of a block", mailbox)
    call.claim()
    call.closes, future = True, call.future
    waits = asyncio.create_task(outlast(future, call))
    await asyncio.sleep(0)
    call.deliver()
    waits.cancel()
    assert isinstance(await waits, asyncio.CancelledError)
    assert future.done()
    assert mailbox._waiting == {}
