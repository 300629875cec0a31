"""A storm of requests and sockets on few workers: nothing hangs, nothing mixes, nothing is left."""

import asyncio
import gc
import os
import random
import threading

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.db import database_sync_to_async as channels_database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.db import connection, transaction
from django.db.backends.signals import connection_created
from django.http import HttpResponse, StreamingHttpResponse
from django.urls import path

from ormbridge import (
    BridgeMiddleware,
    atomic,
    database_sync_to_async,
    pinned,
    release,
    stats,
)
from ormbridge.streaming.rows import stream as stream_rows
from tests.core.gate import GUARD
from tests.core.support import until
from tests.support import left
from tests.support.http import connect, disconnect, get, request

# Another storm, such as one that failed: ORMBRIDGE_TEST_SEED=7. Its number is in the test's id.
SEEDS = [int(seed) for seed in os.environ.get("ORMBRIDGE_TEST_SEED", "1").split(",")]
# How many of each end. ORMBRIDGE_TEST_MANY=10000 takes a minute.
MANY = int(os.environ.get("ORMBRIDGE_TEST_MANY", "400"))
KNOWN = 5
REQUESTS = 90
GROUPS, MEMBERS, MESSAGES = 4, 3, 3
LEAVING_SOCKETS = 10

local = threading.local()
tasks = []
ran_on = set()


def known():
    return User.objects.filter(username__startswith="known")


def count():
    ran_on.add(threading.current_thread().name)
    return known().count() + 1000 * connection.in_atomic_block


async def count_in_every_way():
    """Return what five calls at one time count, one of them on any worker."""
    return sum(
        await asyncio.gather(
            known().acount(),
            sync_to_async(count)(),
            channels_database_sync_to_async(count)(),
            database_sync_to_async(count)(),
            database_sync_to_async(count, thread_sensitive=False)(),
        )
    )


def nest(request):
    """Run async code, which runs sync code, which runs async code."""

    def inner():
        return async_to_sync(count_in_every_way)()

    async def outer():
        return await sync_to_async(inner)() + await database_sync_to_async(inner)()

    return HttpResponse(async_to_sync(outer)() == 2 * 5 * KNOWN)


async def gather(request):
    counts = await asyncio.gather(count_in_every_way(), count_in_every_way())
    return HttpResponse(counts == [5 * KNOWN] * 2)


async def stay(request):
    """Find in the last call what the first one left on the thread."""
    await sync_to_async(setattr)(local, "request", request)
    await count_in_every_way()
    return HttpResponse(await sync_to_async(lambda: local.request is request)())


async def transact(request):
    """Keep a transaction open across calls, and roll it back."""
    block = transaction.atomic()
    await sync_to_async(block.__enter__)()
    await User.objects.acreate(username=f"ghost {id(request)}")
    seen = await channels_database_sync_to_async(
        User.objects.filter(username__startswith="ghost").count
    )()
    in_block = await database_sync_to_async(count)()
    await sync_to_async(block.__exit__)(ValueError, ValueError(), None)
    return HttpResponse((seen, in_block) == (1, 1000 + KNOWN))


async def leave_open(request):
    """Leave a transaction open, which is rolled back with the request."""
    await sync_to_async(transaction.atomic().__enter__)()
    await User.objects.acreate(username=f"ghost {id(request)}")
    return HttpResponse(await database_sync_to_async(count)() == 1000 + KNOWN)


async def iterate(request):
    """Leave an iteration after the first chunk, and go on.

    Not below a sync frame, where Django would close the cursor on the event loop's thread.
    """
    async for _ in known().aiterator(chunk_size=2):
        break
    return HttpResponse(await count_in_every_way() == 5 * KNOWN)


async def stream(request):
    async def parts():
        async for user in known().order_by("pk").aiterator(chunk_size=2):
            yield user.username[-1]
            await release()

    return StreamingHttpResponse(parts())


async def outlive(request):
    """Begin a task that goes on after the request."""
    tasks.append(asyncio.create_task(count_in_every_way()))
    return HttpResponse(await known().acount() == KNOWN)


VIEWS = [nest, gather, stay, transact, leave_open, stream, outlive, iterate]
EXPECTED = {"stream": "".join(map(str, range(KNOWN)))}


class SyncOnly:
    """A middleware that is synchronous only: all views run below it."""

    async_capable = False

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        return self.get_response(request)


class Group(WebsocketConsumer):
    """Sends what one socket says to all of its path, with what it counts."""

    def connect(self):
        self.group = self.scope["path"].strip("/")
        async_to_sync(self.channel_layer.group_add)(self.group, self.channel_name)
        self.accept()

    def receive(self, text_data=None, bytes_data=None):
        message = {"type": "said", "text": str(async_to_sync(count_in_every_way)())}
        async_to_sync(self.channel_layer.group_send)(self.group, message)

    def said(self, message):
        self.send(f"{message['text']} {count()}")


class Hasty(AsyncWebsocketConsumer):
    """Does many things for sockets that leave at any moment."""

    async def receive(self, text_data=None, bytes_data=None):
        begun = asyncio.create_task(known().acount())
        await sync_to_async(transaction.atomic().__enter__)()
        await User.objects.acreate(username=f"ghost {id(self)}")
        async for _ in known().aiterator(chunk_size=2):
            await asyncio.sleep(0)
        await begun


async def turns(number):
    """Let the loop go round *number* times: until any moment of what runs beside."""
    for _ in range(number):
        await asyncio.sleep(0)


async def ask(application, view):
    """Ask for *view* and check its answer."""
    expected = EXPECTED.get(view.__name__, "True")
    assert (view.__name__, await get(application, f"/{view.__name__}")) == (
        view.__name__,
        f"200 {expected}",
    )


async def give_up(application, view, number):
    """Ask for *view* and leave after *number* turns of the loop."""
    client = request(application, f"/{view.__name__}")
    await client.send_input({"type": "http.request"})
    await turns(number)
    await client.send_input({"type": "http.disconnect"})
    await asyncio.wait([client.future], timeout=GUARD)
    assert client.future.done()


async def talk(application, name):
    """Have the members of a group talk to each other, and check what each of them hears."""
    sockets = [await connect(application, f"/{name}") for _ in range(MEMBERS)]
    for _ in range(MESSAGES):
        for socket in sockets:
            await socket.send_input({"type": "websocket.receive", "text": ""})
    for socket in sockets:
        heard = [(await socket.receive_output(GUARD))["text"] for _ in range(MEMBERS * MESSAGES)]
        assert heard == [f"{5 * KNOWN} {KNOWN}"] * MEMBERS * MESSAGES
    await disconnect(*sockets)


async def hurry(application, number):
    """Say something and leave after *number* turns of the loop."""
    socket = await connect(application)
    await socket.send_input({"type": "websocket.receive", "text": ""})
    await turns(number)
    socket.future.cancel()
    await asyncio.wait([socket.future], timeout=GUARD)
    assert socket.future.done()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("threads", [1, 2, 5])
async def test_storm(settings, pool_settings, threads, seed):
    """Whatever is asked and given up at one time, answers are right and all workers come back."""
    pool_settings(MAX_THREADS=threads)
    settings.ALLOWED_HOSTS = ["*"]
    settings.ROOT_URLCONF = tuple(path(view.__name__, view) for view in VIEWS)
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}
    applications = []
    for middleware in ((), (f"{__name__}.SyncOnly",)):
        settings.MIDDLEWARE = middleware
        applications.append(BridgeMiddleware(get_asgi_application()))
    tasks.clear()
    ran_on.clear()
    connected_on = set()

    def note(**kwargs):
        connected_on.add(threading.current_thread().name)

    users = [User(username=f"known {number}") for number in range(KNOWN)]
    await database_sync_to_async(User.objects.bulk_create)(users)
    chance = random.Random(seed)
    storm = [talk(BridgeMiddleware(Group.as_asgi()), f"group{n}") for n in range(GROUPS)]
    hasty = BridgeMiddleware(Hasty.as_asgi())
    storm += [hurry(hasty, chance.randrange(200)) for _ in range(LEAVING_SOCKETS)]
    for _ in range(REQUESTS):
        view = chance.choice(VIEWS)
        asked = applications[0] if view is iterate else chance.choice(applications), view
        if chance.random() < 0.7:
            storm.append(ask(*asked))
        else:
            storm.append(give_up(*asked, chance.randrange(200)))
    chance.shuffle(storm)
    connection_created.connect(note)
    try:
        async with asyncio.timeout(2 * GUARD):
            await asyncio.gather(*storm)
            assert set(await asyncio.gather(*tasks)) == {5 * KNOWN}
    finally:
        connection_created.disconnect(note)
        tasks.clear()

    await until(lambda: stats().idle == stats().threads)
    workers = {f"ormbridge-worker-{number + 1}" for number in range(threads)}
    assert stats().waiting == 0
    assert stats().timeouts == 0
    assert ran_on <= workers
    assert connected_on <= workers
    assert await database_sync_to_async(User.objects.count)() == KNOWN


async def two_calls(*args):
    """Make two calls at one time: the second one waits for its turn, if they share a worker."""
    await asyncio.gather(database_sync_to_async(len)(""), database_sync_to_async(len)(""))


async def answer_a_request():
    scope = {"type": "http", "method": "GET", "path": "/"}
    await BridgeMiddleware(two_calls)(scope, None, None)


async def serve_a_socket():
    await BridgeMiddleware(two_calls)({"type": "websocket", "path": "/"}, None, None)


async def open_a_block():
    async with atomic():
        await two_calls()


async def pin_a_worker():
    async with pinned():
        await two_calls()


async def read_a_stream():
    async for _ in stream_rows(known(), 2):
        await two_calls()


async def leave_the_line():
    waiting = asyncio.create_task(two_calls())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])


def alive():
    """Count what may be left of requests, blocks and streams, timers included."""
    gc.collect()
    found = left.alive(asyncio.TimerHandle)
    found["scheduled"] = len(asyncio.get_running_loop()._scheduled)
    return found


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "do",
    [answer_a_request, serve_a_socket, open_a_block, pin_a_worker, read_a_stream, leave_the_line],
)
async def test_nothing_outlives_what_has_ended(do, pool_settings):
    """Of thousands of requests, blocks and streams that have ended nothing is left, nor a timer."""
    pool_settings(MAX_THREADS=2, TIMEOUT=1e9)
    await database_sync_to_async(User.objects.create)(username="known")
    counts = []
    for times in (20, MANY):
        for _ in range(times // 20):
            await asyncio.gather(*[do() for _ in range(20)])
        await until(lambda: stats().idle == stats().threads)
        counts.append(alive())
    grown = counts[1] - counts[0]
    assert grown.total() < MANY / 20, grown
