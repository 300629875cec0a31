"""The page ``guide/asgi``: its examples, and the claims it makes."""

import ast
import asyncio
import contextlib
import contextvars
import gc
import os
import re
import subprocess
import sys
import threading
from io import BytesIO
from pathlib import Path

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels import db as channels_db
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.core.handlers.asgi import ASGIHandler
from django.db import connection
from django.db.models.signals import post_init, post_save
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.test import AsyncClient
from django.urls import path
from uvicorn import Config
from uvicorn.lifespan.on import LifespanOn

from ormbridge import BridgeMiddleware, database_sync_to_async, pinned, release, stats, stream
from tests.core.gate import GUARD, PROCESS_GUARD
from tests.core.support import leased, until
from tests.support.examples import example_source
from tests.support.http import connect, disconnect, get, request, say
from tests.support.timeline import Timeline

ROOT = Path(__file__).parents[2]


def sync_middleware(get_response):
    """Do what an old middleware does: be synchronous."""
    return lambda request: get_response(request)


def noting_middleware(get_response):
    """Note in the response on which thread a synchronous middleware ran."""

    def middleware(request):
        response = get_response(request)
        response.content += b" " + get_thread_name().encode()
        return response

    return middleware


def get_thread_name():
    return threading.current_thread().name


@pytest.fixture
def site(settings):
    """Return a function that serves *view* under the middleware."""

    def serve(view, *middleware):
        settings.ROOT_URLCONF = (path("", view),)
        settings.MIDDLEWARE = [f"{__name__}.{each.__name__}" for each in middleware]
        return BridgeMiddleware(ASGIHandler())

    return serve


# The examples, in the order of the page.


@pytest.fixture
def project(tmp_path):
    """Return a function that pastes an example into a new project, and runs a script there."""

    def run(example, script):
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}

        def python(*arguments):
            finished = subprocess.run(
                [sys.executable, *arguments],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=PROCESS_GUARD,
            )
            assert (finished.returncode, finished.stderr) == (0, "")
            return finished.stdout

        python("-m", "django", "startproject", "mysite", ".")
        (tmp_path / "mysite" / "asgi.py").write_text(example_source(example), encoding="utf-8")
        python("manage.py", "migrate", "--verbosity=0")
        return python("-W", "error", "-c", script)

    return run


def test_application(project, recorded):
    """An ``asgi.py`` with HTTP and WebSockets runs in a fresh project as it is."""
    recorded("asgi/application", project("asgi/application", VISIT_BOTH))


VISIT_BOTH = """
import asyncio
from mysite.asgi import application
from tests.support.http import connect, disconnect, get, say

async def main():
    print("http", (await get(application, "/admin/login/"))[:3])
    socket = await connect(application, "/ws/users/")
    print("websocket", await say(socket, "{}"))
    await disconnect(socket)

asyncio.run(main())
"""


def test_django_alone(project, recorded):
    """An ``asgi.py`` without Channels runs in a fresh project as it is."""
    recorded("asgi/http_only", project("asgi/http_only", VISIT_HTTP))


VISIT_HTTP = """
import asyncio
from mysite.asgi import application
from tests.support.http import get

print("http", asyncio.run(get(application, "/admin/login/"))[:3])
"""


def test_lifespan(project, recorded):
    """What the application has for ``lifespan`` is called, as if the middleware were not there."""
    recorded("asgi/lifespan", project("asgi/lifespan", START_AND_STOP))


START_AND_STOP = """
import asyncio
from asgiref.testing import ApplicationCommunicator
from mysite.asgi import application
from tests.support.http import get

async def main():
    server = ApplicationCommunicator(application, {"type": "lifespan"})
    await server.send_input({"type": "lifespan.startup"})
    print((await server.receive_output(30))["type"])
    print("http", (await get(application, "/admin/login/"))[:3])
    await server.send_input({"type": "lifespan.shutdown"})
    print((await server.receive_output(30))["type"])
    await server.wait(30)

asyncio.run(main())
"""


def test_sockets_before(run_script, recorded):
    """Twenty sockets whose handlers take 50 ms, without the middleware."""
    recorded("asgi/sockets_before", run_script(example_source("asgi/sockets_before")))


def test_sockets_after(run_script, recorded):
    """Twenty sockets whose handlers take 50 ms, under the middleware."""
    recorded("asgi/sockets_after", run_script(example_source("asgi/sockets_after")))


@pytest.mark.parametrize("name", ["asgi/sockets", "asgi/background"])
def test_fix_is_one_line(name):
    """The program before and the program after differ in ``BridgeMiddleware`` alone."""
    before, after = (ast.parse(example_source(f"{name}_{way}")) for way in ("before", "after"))
    assert ast.dump(before) != ast.dump(after)
    assert ast.dump(before) == ast.dump(WithoutMiddleware().visit(after))


class WithoutMiddleware(ast.NodeTransformer):
    """Takes the middleware out of a module."""

    def visit_ImportFrom(self, node):
        return None if node.module == "ormbridge" else node

    def visit_Call(self, node):
        self.generic_visit(node)
        wraps = isinstance(node.func, ast.Name) and node.func.id == "BridgeMiddleware"
        return node.args[0] if wraps else node


@pytest.mark.parametrize(
    ("name", "threads"), [("asgi/sockets_before", 1), ("asgi/sockets_after", 10)]
)
async def test_sockets_timeline(name, threads, load_example, pool_settings, recorded_timeline):
    """Twenty sockets run on one thread without the middleware, on ten workers under it."""
    pool_settings(MAX_THREADS=10)
    module = load_example(name)
    query, at_once = module.query, threading.Barrier(threads)

    def query_together():  # a busy machine may be done with one before the tenth begins
        at_once.wait(GUARD)
        query()

    module.query = query_together
    timeline = Timeline()
    timeline.watch(module, "query")
    module.application = timeline.application(module.application)
    await module.main()
    recorded_timeline(name, timeline, overlaps=False)


async def test_request_stays_on_its_worker(load_example, settings, recorded):
    """The calls of one request, by whatever way they come, run on one worker."""
    settings.ROOT_URLCONF = load_example("asgi/worker")
    application = BridgeMiddleware(ASGIHandler())
    recorded("asgi/worker", await get(application, "/threads/"))


async def test_requests_timeline(
    load_example, settings, pool_settings, recorded, recorded_timeline
):
    """Four requests hold two workers while they wait for something else; or release them."""
    answers = []
    for name in ("held", "released"):
        pool_settings(MAX_THREADS=2)
        settings.ROOT_URLCONF = module = load_example("asgi/two_requests")
        timeline = Timeline()
        timeline.watch(module, "query")
        application = timeline.application(BridgeMiddleware(ASGIHandler()), holds=name == "held")
        answers += await asyncio.gather(*[get(application, f"/{name}/") for _ in range(4)])
        recorded_timeline(f"asgi/two_requests-{name}", timeline, overlaps=False)
        calls = [span for span in timeline.spans if not span.held]
        # The third call is the second one of a request that holds its worker, or another one's.
        assert len({span.where for span in calls[:3]}) == {"held": 2, "released": 3}[name]
    recorded("asgi/two_requests", "\n".join(answers))


def test_websocket_lease(run_script, recorded):
    """With ``WEBSOCKET_LEASE`` at ``"connection"`` an open socket keeps the worker of its calls."""
    output = run_script(example_source("asgi/websocket_lease"))
    # A busy machine waits a little longer than TIMEOUT, and says so.
    recorded("asgi/websocket_lease", re.sub(r"\d+\.\d s", "0.5 s", output))


async def test_events(ada, load_example, settings, pool_settings, recorded):
    """Event streams that release their worker are open at once on a single worker."""
    pool_settings(MAX_THREADS=1)
    settings.ROOT_URLCONF = load_example("asgi/events")
    application = BridgeMiddleware(ASGIHandler())
    clients = [request(application, "/events/") for _ in range(3)]
    seen = []
    for client in clients:
        await client.send_input({"type": "http.request"})
        seen.append(str((await client.receive_output(GUARD))["status"]))
        seen.append((await client.receive_output(GUARD))["body"].decode().rstrip())
    assert await neighbour() == "ormbridge-worker-1"
    for client in clients:
        await client.send_input({"type": "http.disconnect"})
        await client.wait(GUARD)
    recorded("asgi/events", "\n".join(seen))


def test_task_that_outlives_its_request_fails(run_script, recorded):
    """Without the middleware, under sync middleware, the task of a request that is over fails."""
    recorded("asgi/background_before", run_script(example_source("asgi/background_before")))


def test_task_that_outlives_its_request(run_script, recorded):
    """Under the middleware the task of a request that is over uses the ORM."""
    recorded("asgi/background_after", run_script(example_source("asgi/background_after")))


def test_unavailable(run_script, recorded):
    """A request that gets no worker in time is answered with 503."""
    recorded("asgi/unavailable", run_script(example_source("asgi/unavailable")))


# HTTP.


async def test_requests_have_no_bound_without_the_line(settings, gate, pool_settings):
    """Without the middleware each request has a thread of its own, whatever the settings say."""
    pool_settings(MAX_THREADS=2)
    settings.ROOT_URLCONF = (path("", lambda request: HttpResponse(gate())),)
    requests = [asyncio.create_task(get(ASGIHandler())) for _ in range(20)]
    await gate.entered(20)
    assert len(set(gate.threads)) == 20
    gate.open.set()
    await asyncio.gather(*requests)


async def test_middleware_and_view_share_a_worker(site):
    """A synchronous view runs on the same worker as the synchronous middleware around it."""
    application = site(lambda request: HttpResponse(get_thread_name()), noting_middleware)
    assert await get(application) == "200 ormbridge-worker-1 ormbridge-worker-1"


async def test_calls_of_a_request_run_one_at_a_time(site, gate):
    """Calls that one request makes at once take turns."""

    async def view(request):
        await asyncio.gather(sync_to_async(gate)(), database_sync_to_async(gate)())
        return HttpResponse()

    answer = asyncio.create_task(get(site(view)))
    await gate.entered()
    for _ in range(100):  # far longer than a call needs to start where nothing holds it up
        await asyncio.sleep(0)
    assert len(gate.threads) == 1
    gate.open.set()
    assert await answer == "200"
    assert len(gate.threads) == 2


@pytest.mark.parametrize("way", ["thread_sensitive=False", "HTTP_LEASE"])
async def test_calls_of_a_request_that_meet(site, pool_settings, way):
    """Calls of one request that need no common worker run at the same time, if they say so."""
    if way == "HTTP_LEASE":
        pool_settings(HTTP_LEASE="call")
    both = threading.Barrier(2)
    options = {} if way == "HTTP_LEASE" else {"thread_sensitive": False}
    meet = database_sync_to_async(lambda: both.wait(GUARD), **options)

    async def view(request):
        await asyncio.gather(meet(), meet())
        return HttpResponse()

    assert await get(site(view)) == "200"


async def test_session_is_saved_on_a_worker(transactional_db, site, settings):
    """A session that a view has changed is saved on the worker of the request."""
    threads = []

    def note_thread(**kwargs):
        threads.append(get_thread_name())

    async def view(request):
        request.session["seen"] = stats().threads
        return HttpResponse()

    site(view)
    settings.MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware"]
    post_save.connect(note_thread, sender=Session)
    try:
        assert await get(BridgeMiddleware(ASGIHandler())) == "200"
    finally:
        post_save.disconnect(note_thread, sender=Session)
    assert threads == ["ormbridge-worker-1"]
    (session,) = await database_sync_to_async(lambda: list(Session.objects.all()))()
    assert session.get_decoded() == {"seen": 0}


async def test_state_of_a_connection_stays_with_the_request(transactional_db, site, gate):
    """What one call of a request sets on its connection, the next call of the request finds."""
    elsewhere = database_sync_to_async(gate)

    def read():
        with connection.cursor() as cursor:
            cursor.execute("SELECT name FROM tenant")
            return cursor.fetchone()[0]

    def write():
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMPORARY TABLE tenant (name VARCHAR(10))")
            cursor.execute("INSERT INTO tenant VALUES ('blue')")

    async def view(request):
        await database_sync_to_async(write)()
        other = asyncio.create_task(elsewhere(), context=contextvars.Context())
        await gate.entered()  # it would have the worker if this request did not hold it
        name = await channels_db.database_sync_to_async(read)()
        gate.open.set()
        await other
        return HttpResponse(name)

    assert await get(site(view)) == "200 blue"


async def test_user_and_session_are_reads(ada, settings):
    """``session.aget()`` and ``auser()`` query on a worker, and give it back."""
    threads = {}

    def note_thread(sender, **kwargs):
        threads[sender] = get_thread_name()

    async def view(request):
        assert await request.session.aget("_auth_user_id") == str(ada.pk)
        assert await request.auser() == ada
        return HttpResponse(str(leased()))

    settings.ROOT_URLCONF = (path("", view),)
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    client = AsyncClient()
    await client.aforce_login(ada)
    cookie = b"sessionid=" + client.cookies["sessionid"].value.encode()

    async def application(scope, receive, send):
        scope = {**scope, "headers": [(b"cookie", cookie)]}
        await BridgeMiddleware(ASGIHandler())(scope, receive, send)

    for model in (Session, User):
        post_init.connect(note_thread, sender=model)
    try:
        answer = await get(application)
    finally:
        for model in (Session, User):
            post_init.disconnect(note_thread, sender=model)
    assert answer == "200 0"
    assert threads == dict.fromkeys((Session, User), "ormbridge-worker-1")


async def test_streaming_response_keeps_its_worker(site, pool_settings):
    """A response that streams keeps the worker of its request until it ends."""
    pool_settings(MAX_THREADS=1)

    async def stream():
        yield await database_sync_to_async(get_thread_name)()
        yield "" if stats().idle else " held"
        yield " " + await database_sync_to_async(get_thread_name)()

    async def view(request):
        return StreamingHttpResponse(stream())

    answer = await get(site(view))
    assert answer == "200 ormbridge-worker-1 held ormbridge-worker-1"
    assert await neighbour() == "ormbridge-worker-1"


async def test_call_after_release_may_have_another_worker(site, gate, pool_settings):
    """After ``release()`` another request may have the worker; the next call takes another."""
    pool_settings(MAX_THREADS=2)
    call = database_sync_to_async(get_thread_name)

    async def view(request):
        first = await call()
        await release()
        await until(lambda: not stats().holders)
        held = asyncio.create_task(database_sync_to_async(gate)(), context=contextvars.Context())
        await gate.entered()
        second = await call()
        gate.open.set()
        return HttpResponse(f"{first} {second} {await held}")

    answer = await get(site(view))
    assert answer == "200 ormbridge-worker-1 ormbridge-worker-2 ormbridge-worker-1"


async def neighbour():
    """Have the only worker of the pool from outside of the context; return its name."""
    call = database_sync_to_async(get_thread_name)()
    return await asyncio.create_task(call, context=contextvars.Context())


def as_view(function):
    """Return an async view that answers with what *function* returns."""

    async def view(request):
        return HttpResponse(await function())

    return view


# WebSockets.


async def test_messages_of_a_socket_come_in_order(gate):
    """A socket's next message is handled when its handler for the one before has returned."""
    handled = []

    class Consumer(WebsocketConsumer):
        def receive(self, text_data):
            gate()
            handled.append(text_data)
            self.send(text_data=text_data)

    socket = await connect(BridgeMiddleware(Consumer.as_asgi()))
    for number in range(3):
        await socket.send_input({"type": "websocket.receive", "text": str(number)})
    await gate.entered()
    assert len(gate.threads) == 1
    gate.open.set()
    for _ in range(3):
        await socket.receive_output(GUARD)
    assert handled == ["0", "1", "2"]
    await disconnect(socket)


async def test_orm_of_a_socket_runs_on_workers(ada, gate):
    """Django's own ``a``-methods run on workers, those of two sockets at the same time."""

    class Consumer(AsyncWebsocketConsumer):
        async def receive(self, text_data):
            user = await User.objects.aget(username="ada")
            await self.send(text_data=user.username)

    def wait_at_gate(**kwargs):
        gate()

    application = BridgeMiddleware(Consumer.as_asgi())
    sockets = [await connect(application) for _ in range(2)]
    post_init.connect(wait_at_gate, sender=User)
    try:
        answers = [asyncio.create_task(say(socket)) for socket in sockets]
        await gate.entered(2)
        gate.open.set()
        assert await asyncio.gather(*answers) == ["ada", "ada"]
    finally:
        post_init.disconnect(wait_at_gate, sender=User)
    assert sorted(gate.threads) == ["ormbridge-worker-1", "ormbridge-worker-2"]
    await disconnect(*sockets)


async def test_task_that_outlives_its_socket():
    """A task of a socket that is closed goes on, a worker for each call."""
    tasks = []
    is_closed = asyncio.Event()

    async def work():
        await is_closed.wait()
        return await sync_to_async(get_thread_name)()

    class Consumer(AsyncWebsocketConsumer):
        async def connect(self):
            tasks.append(asyncio.create_task(work()))
            await self.accept()

    await disconnect(await connect(BridgeMiddleware(Consumer.as_asgi())))
    is_closed.set()
    assert await tasks[0] == "ormbridge-worker-1"
    assert stats().holders == ()


# Lifespan.


async def test_django_refuses_lifespan():
    """Django's own application refuses ``lifespan``, with or without the middleware."""
    for application in (ASGIHandler(), BridgeMiddleware(ASGIHandler())):
        server = ApplicationCommunicator(application, {"type": "lifespan"})
        with pytest.raises(
            ValueError, match="Django can only handle ASGI/HTTP connections, not lifespan"
        ):
            await server.wait(GUARD)


async def test_uvicorn_goes_on_without_lifespan(caplog):
    """uvicorn notes that Django's application has no ``lifespan``, and goes on."""
    caplog.set_level("INFO", "uvicorn.error")
    lifespan = LifespanOn(Config(BridgeMiddleware(ASGIHandler()), log_config=None))
    await lifespan.startup()
    said = "ASGI 'lifespan' protocol appears unsupported."
    (record,) = [each for each in caplog.records if each.getMessage() == said]
    assert (record.levelname, lifespan.should_exit) == ("INFO", False)
    page = (ROOT / "docs/guide/servers.md").read_text(encoding="utf-8")
    assert f"*{said}*" in " ".join(page.split())


# What the bound does not count.


@pytest.mark.parametrize(
    "call", [asyncio.to_thread, lambda func: sync_to_async(func, thread_sensitive=False)()]
)
async def test_other_threads_are_not_workers(site, call):
    """``asyncio.to_thread`` and asgiref's ``thread_sensitive=False`` run outside of the pool."""
    answer = await get(site(as_view(lambda: call(get_thread_name))))
    assert answer.startswith("200 asyncio_")
    assert stats().threads == 0


# Clients that are slow, and clients that leave.


class StalledClient:
    """A client that takes the start of a response and no row of it, until it leaves."""

    def __init__(self, application, path):
        self.stands_still = asyncio.Event()
        self.has_left = asyncio.Event()
        self.asked = False
        scope = {"type": "http", "method": "GET", "path": path, "headers": []}
        self.task = asyncio.create_task(application(scope, self.receive, self.send))

    async def receive(self):
        if not self.asked:
            self.asked = True
            return {"type": "http.request"}
        await self.has_left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if message["type"] == "http.response.body":
            self.stands_still.set()
            await asyncio.Event().wait()


async def rows(request):
    async def content():
        async for user in stream(User.objects.all()):
            yield user.username

    return StreamingHttpResponse(content())


async def count(request):
    return HttpResponse(str(await User.objects.acount()))


@pytest.fixture
def slow_clients(ada, settings, pool_settings, load_example):
    """Return a function that wraps a stream of rows in the class of the example."""
    User.objects.create(username="bob")
    settings.ROOT_URLCONF = (path("rows", rows), path("count", count))
    return load_example("asgi/slow_clients").SlowClients


async def test_stalled_clients_hold_the_workers(slow_clients, pool_settings):
    """Who reads nothing of a ``stream()`` holds a worker; with all held, a request gets a 503."""
    pool_settings(MAX_THREADS=3, TIMEOUT=0.5)
    application = BridgeMiddleware(ASGIHandler())
    clients = [StalledClient(application, "/rows") for _ in range(3)]
    for client in clients:
        await asyncio.wait_for(client.stands_still.wait(), GUARD)
    assert (await get(application, "/count")).startswith("503")
    for client in clients:
        client.has_left.set()
    await asyncio.wait_for(asyncio.gather(*[client.task for client in clients]), GUARD)
    assert await get(application, "/count") == "200 2"


def page(request):
    User.objects.count()
    return HttpResponse(b"x" * 200_000)


def file(request):
    User.objects.count()
    return FileResponse(BytesIO(b"x" * 200_000))


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
@pytest.mark.parametrize("view", [page, file])
async def test_stalled_client_of_a_page_or_file(view, ada, settings, pool_settings):
    """Who reads nothing of a body whose length is known, of a page or a file, holds no worker."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.5)
    settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
    settings.ALLOWED_HOSTS = ["*"]
    settings.ROOT_URLCONF = (path("", view), path("count", count))
    application = BridgeMiddleware(ASGIHandler())
    client = StalledClient(application, "/")
    await asyncio.wait_for(client.stands_still.wait(), GUARD)
    assert await get(application, "/count") == "200 1"
    client.has_left.set()
    await asyncio.wait_for(client.task, GUARD)


async def test_slow_clients_are_given_up(slow_clients, pool_settings, recorded):
    """With a limit on how long a response may stand still, its worker comes back."""
    pool_settings(MAX_THREADS=1)
    application = slow_clients(BridgeMiddleware(ASGIHandler()), seconds=0.2)
    client = StalledClient(application, "/rows")
    await asyncio.wait_for(client.stands_still.wait(), GUARD)
    assert await get(application, "/count") == "200 2"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.task, GUARD)
    recorded("asgi/slow_clients", "")


async def test_generator_at_its_yield_is_not_closed(settings):
    """A view's generator that stands at its ``yield`` when the client leaves is not closed."""
    made = []
    closed = []

    async def content():
        try:
            yield "one"
            yield "two"
        finally:
            closed.append(asyncio.current_task())

    async def view(request):
        made.append(content())
        return StreamingHttpResponse(made[0])

    settings.ROOT_URLCONF = (path("", view),)
    client = StalledClient(BridgeMiddleware(ASGIHandler()), "/")
    await asyncio.wait_for(client.stands_still.wait(), GUARD)
    client.has_left.set()
    await asyncio.wait_for(client.task, GUARD)
    assert closed == []
    await made.pop().aclose()
    assert len(closed) == 1


def make_pinned_consumer(block):
    """Return an application whose sockets enter *block*, and can send nothing once accepted."""

    class Consumer(AsyncWebsocketConsumer):
        async def connect(self):
            self.block = block()
            await self.block.__aenter__()
            await User.objects.acreate(username="ada")
            await self.accept()

        async def receive(self, text_data=None, bytes_data=None):
            await self.send(text_data)

        async def disconnect(self, code):
            await User.objects.all().adelete()
            await self.block.__aexit__(None, None, None)

    consumer = Consumer.as_asgi()

    async def application(scope, receive, send):
        async def send_to_nobody(message):
            if message["type"] == "websocket.send":
                raise BrokenPipeError  # an OSError, as ASGI has it, for a client that has gone
            await send(message)

        await consumer(scope, receive, send_to_nobody)

    return BridgeMiddleware(application)


@pytest.mark.django_db(transaction=True)
async def test_socket_whose_send_fails(caplog):
    """Channels calls no ``disconnect``: its row stays; its block ends as the consumer is freed."""

    async def serve():
        socket = await connect(make_pinned_consumer(pinned))
        ((_, name, _),) = stats().holders
        assert "pinned()" in name
        await socket.send_input({"type": "websocket.receive", "text": ""})
        await socket.send_input({"type": "websocket.disconnect", "code": 1006})
        with pytest.raises(BrokenPipeError):
            await socket.wait(GUARD)

    def is_free():
        gc.collect()  # the error knows the consumer
        return not stats().holders

    await serve()
    await until(is_free)
    assert re.search(r"pinned\(\) at test_asgi.py:\d+ .* was not left", caplog.text)
    assert await User.objects.acount() == 1


@pytest.mark.django_db(transaction=True)
async def test_lease_of_a_socket_whose_send_fails(pool_settings):
    """With WEBSOCKET_LEASE = "connection" the worker is given back all the same."""
    pool_settings(WEBSOCKET_LEASE="connection")
    socket = await connect(make_pinned_consumer(contextlib.nullcontext))
    assert len(stats().holders) == 1
    await socket.send_input({"type": "websocket.receive", "text": ""})
    with pytest.raises(BrokenPipeError):
        await socket.wait(GUARD)
    await until(lambda: not stats().holders)
