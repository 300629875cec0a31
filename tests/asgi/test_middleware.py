"""BridgeMiddleware: an HTTP request holds one worker from its first call to its end."""

import asyncio
from unittest import mock

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from channels.db import database_sync_to_async as channels_database_sync_to_async
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.http import HttpResponse, StreamingHttpResponse

from ormbridge import (
    BridgeMiddleware,
    PoolTimeout,
    aclose_old_connections,
    atomic,
    database_sync_to_async,
    pinned,
    release,
    stats,
    stream,
)
from ormbridge.core import route as routes
from tests.core.gate import GUARD
from tests.core.support import no_worker_is_leased, thread_name, until
from tests.support.applications import SyncOnly  # noqa: F401 - found by its name
from tests.support.http import get, request


async def test_request_without_calls_takes_no_worker(serve):
    """A request that calls nothing takes no worker, from request_started to request_finished."""

    async def view(request):
        return HttpResponse("done")

    assert await get(serve(view)) == "200 done"
    assert stats().threads == 0


async def test_calls_of_a_request_share_one_worker(serve):
    """All calls of a request run on one worker, however they are made."""

    async def view(request):
        names = [
            await sync_to_async(thread_name)(),
            await channels_database_sync_to_async(thread_name)(),
            await database_sync_to_async(thread_name)(),
            *await asyncio.gather(*(sync_to_async(thread_name)() for _ in range(3))),
        ]
        return HttpResponse(" ".join(sorted(set(names))))

    assert await get(serve(view)) == "200 ormbridge-worker-1"
    await no_worker_is_leased()
    assert stats().calls == 6


async def test_requests_run_at_the_same_time_within_the_bound(serve, gate, pool_settings):
    """Sync views run in parallel, on as many workers as there may be, and no more."""
    pool_settings(MAX_THREADS=3)

    def view(request):
        return HttpResponse(gate())

    application = serve(view)
    requests = [asyncio.create_task(get(application)) for _ in range(5)]
    await gate.entered(3)
    await until(lambda: stats().waiting == 2)
    assert len(set(gate.threads)) == 3
    gate.open.set()
    await asyncio.gather(*requests)
    assert len(gate.threads) == 5
    assert stats().threads == 3


async def test_other_requests_run_between_the_calls_of_one(serve, pool_settings):
    """A request keeps its worker between two calls: the next one takes another."""
    first, second = asyncio.Event(), asyncio.Event()

    async def view(request):
        name = await sync_to_async(thread_name)()
        first.set()
        if request.path == "/":
            await second.wait()
        return HttpResponse(f"{name} {await sync_to_async(thread_name)()}")

    application = serve(view)
    holder = asyncio.create_task(get(application))
    await first.wait()
    assert await get(application, "/again") == "200 ormbridge-worker-2 ormbridge-worker-2"
    second.set()
    assert await holder == "200 ormbridge-worker-1 ormbridge-worker-1"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("what", ["call", "method", "block", "pinned", "stream"])
async def test_asyncio_run_in_a_view_says_what_to_do(serve, pool_settings, what):
    """An event loop that a sync view starts finds no second worker; whatever asks is told why."""
    pool_settings(MAX_THREADS=1)
    messages = []

    async def asks():
        match what:
            case "call":
                await database_sync_to_async(User.objects.count)()
            case "method":
                await User.objects.acount()
            case "block":
                async with atomic():
                    pass
            case "pinned":
                async with pinned():
                    await User.objects.acount()
            case "stream":
                async for _ in stream(User.objects.all()):
                    pass

    def view(request):
        try:
            asyncio.run(asks())
        except PoolTimeout as error:
            messages.append(str(error))
        return HttpResponse()

    await get(serve(view))
    (message,) = messages
    assert message.endswith("Use async_to_sync in place of asyncio.run [loop-on-worker]")
    assert "is called from an event loop started on ormbridge-worker-1" in message


async def test_http_lease_call(serve, pool_settings):
    """With HTTP_LEASE = "call" a request holds no worker between its calls."""
    pool_settings(HTTP_LEASE="call")
    leased = []

    async def view(request):
        await sync_to_async(thread_name)()
        leased.append(stats().threads - stats().idle)
        return HttpResponse()

    await get(serve(view))
    assert leased == [0]


@pytest.mark.django_db(transaction=True)
async def test_wrapper_with_http_lease_call_sees_a_part(serve, pool_settings):
    """A wrapper that a request sets sees its next call, but not with HTTP_LEASE = "call"."""
    seen, entered = [], []

    def count(execute, sql, params, many, context):
        seen.append(sql)
        return execute(sql, params, many, context)

    def enter():
        entered.append(connection.execute_wrapper(count))
        entered[-1].__enter__()

    def query():
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    async def view(request):
        await sync_to_async(enter)()
        await sync_to_async(query)()
        return HttpResponse()

    for lease, expected in (("request", ["SELECT 1"]), ("call", [])):
        pool_settings(MAX_THREADS=1, HTTP_LEASE=lease)
        assert await get(serve(view)) == "200"
        assert [sql for sql in seen if sql == "SELECT 1"] == expected
        seen.clear()


@pytest.mark.django_db(transaction=True)
async def test_connections_persist(serve, connection_settings, pool_settings):
    """A thousand requests open no more connections than there may be workers."""
    pool_settings(MAX_THREADS=3)
    opened = []

    async def view(request):
        await User.objects.afirst()
        opened.append(await sync_to_async(lambda: connection.connection)())
        return HttpResponse()

    application = serve(view)
    for _ in range(100):
        await asyncio.gather(*(get(application) for _ in range(10)))
    assert len(opened) == 1000
    assert len(set(map(id, opened))) <= 3


@pytest.mark.django_db(transaction=True)
async def test_channels_db_does_not_close_the_connection_of_a_request(serve, connection_settings):
    """Even with CONN_MAX_AGE = 0 a request keeps its connection, and closes it at its end."""
    connection_settings(CONN_MAX_AGE=0)
    opened = []

    def connect():
        connection.ensure_connection()
        opened.append(connection.connection)

    async def view(request):
        for _ in range(3):
            await channels_database_sync_to_async(connect)()
        return HttpResponse()

    await get(serve(view))
    await no_worker_is_leased()
    assert len(opened) == 3
    assert len(set(map(id, opened))) == 1
    assert await database_sync_to_async(lambda: connection.connection)() is None


@pytest.mark.django_db(transaction=True)
async def test_channels_db_leaves_a_transaction_alone(serve):
    """A channels.db call in a transaction that spans calls does not destroy it."""

    async def view(request):
        block = transaction.atomic()
        await sync_to_async(block.__enter__)()
        await User.objects.acreate(username="ada")
        await channels_database_sync_to_async(User.objects.create)(username="eve")
        await sync_to_async(block.__exit__)(None, None, None)
        return HttpResponse(await User.objects.acount())

    assert await get(serve(view)) == "200 2"
    assert await database_sync_to_async(User.objects.count)() == 2


@pytest.mark.django_db(transaction=True)
async def test_transaction_left_open_is_rolled_back(serve, caplog):
    """A transaction that is open at the end of the request is rolled back, with a warning."""

    async def view(request):
        await sync_to_async(transaction.atomic().__enter__)()
        await User.objects.acreate(username="ada")
        return HttpResponse()

    await get(serve(view))
    await no_worker_is_leased()
    assert await database_sync_to_async(User.objects.count)() == 0
    assert [record.getMessage() for record in caplog.records if record.name == "ormbridge"] == [
        "connection 'default' discarded: the call left a transaction open; it was rolled back"
    ]


@pytest.mark.django_db(transaction=True)
async def test_atomic_requests_on_a_sync_view(serve, connection_settings):
    """With ATOMIC_REQUESTS a sync view that raises leaves nothing in the database."""
    connection_settings(ATOMIC_REQUESTS=True)

    def view(request):
        User.objects.create(username="ada")
        if request.path == "/again":
            raise ValueError
        return HttpResponse("kept")

    application = serve(view)
    assert (await get(application, "/again")).startswith("500")
    assert await database_sync_to_async(User.objects.count)() == 0
    assert await get(application) == "200 kept"
    assert await database_sync_to_async(User.objects.count)() == 1


@pytest.mark.parametrize("middleware", [(), (f"{__name__}.SyncOnly",)])
async def test_one_worker_is_enough(serve, pool_settings, middleware):
    """With one worker, views that nest sync and async code and gather calls do not hang."""
    pool_settings(MAX_THREADS=1)

    async def below():
        inner = [sync_to_async(thread_name)(), database_sync_to_async(thread_name)()]
        free = database_sync_to_async(thread_name, thread_sensitive=False)()
        return set(await asyncio.gather(*inner, free))

    def sync_part():
        return async_to_sync(below)() | {thread_name()}

    async def view(request):
        names = await asyncio.gather(below(), sync_to_async(sync_part)(), below())
        return HttpResponse(" ".join(set.union(*names)))

    assert await get(serve(view, *middleware)) == "200 ormbridge-worker-1"


async def test_own_loop_in_a_sync_view_is_refused_a_second_worker(serve, pool_settings):
    """A sync view that starts a loop of its own gets an error instead of a deadlock."""
    pool_settings(MAX_THREADS=1)
    errors = []

    async def below():
        with pytest.raises(PoolTimeout) as caught:
            await sync_to_async(thread_name)()
        errors.append(str(caught.value))

    def view(request):
        asyncio.run(below())
        return HttpResponse("done")

    assert await get(serve(view)) == "200 done"
    assert errors == [
        "tests.core.support.thread_name is called from an event loop started on "
        "ormbridge-worker-1, and no other worker is free; waiting for one while holding one could "
        "deadlock. Use async_to_sync in place of asyncio.run [loop-on-worker]"
    ]


@pytest.mark.django_db(transaction=True)
async def test_thread_sensitive_false_does_not_join_the_transaction(serve, pool_settings):
    """A call with thread_sensitive=False that only the transaction has a worker for is refused."""
    pool_settings(MAX_THREADS=1)

    async def view(request):
        await sync_to_async(transaction.atomic().__enter__)()
        with pytest.raises(PoolTimeout, match="which it must not join"):
            await database_sync_to_async(thread_name, thread_sensitive=False)()
        return HttpResponse("refused")

    assert await get(serve(view)) == "200 refused"


@pytest.mark.django_db(transaction=True)
async def test_thread_sensitive_false_waits_for_its_turn(serve, gate, pool_settings):
    """Whether there is a transaction to stay out of is decided when its turn has come."""
    pool_settings(MAX_THREADS=1)

    def pay():
        with transaction.atomic():
            gate()

    async def view(request):
        paying = asyncio.create_task(sync_to_async(pay)())
        await gate.entered()
        free = asyncio.create_task(database_sync_to_async(thread_name, thread_sensitive=False)())
        await asyncio.sleep(0)
        gate.open.set()
        await paying
        return HttpResponse(await free)

    assert await get(serve(view)) == "200 ormbridge-worker-1"


async def test_thread_sensitive_false_takes_a_free_worker(serve):
    """A call with thread_sensitive=False runs beside the worker that the request holds."""

    async def view(request):
        held = await sync_to_async(thread_name)()
        return HttpResponse(
            f"{held} {await database_sync_to_async(thread_name, thread_sensitive=False)()}"
        )

    assert await get(serve(view)) == "200 ormbridge-worker-1 ormbridge-worker-2"


async def test_disconnect_gives_the_worker_back_when_the_thread_is_done(serve, gate):
    """A request that its client gave up keeps its worker until the running call has ended."""

    async def view(request):
        await sync_to_async(gate)()

    client = request(serve(view))
    await client.send_input({"type": "http.request"})
    await gate.entered()
    await client.send_input({"type": "http.disconnect"})
    await client.wait(GUARD)
    assert stats().holders[0][1] == "GET /, in tests.core.gate.Gate"
    gate.open.set()
    await no_worker_is_leased()


async def test_disconnect_while_waiting_leaves_the_line(serve, gate, pool_settings):
    """A request that waits for a worker and is given up leaves the line, and never runs."""
    pool_settings(MAX_THREADS=1)
    ran = []

    async def view(request):
        await sync_to_async(ran.append)("ran")

    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    client = request(serve(view))
    await client.send_input({"type": "http.request"})
    await until(lambda: stats().waiting == 1)
    await client.send_input({"type": "http.disconnect"})
    await client.wait(GUARD)
    assert stats().waiting == 0
    gate.open.set()
    await holder
    assert ran == []


@pytest.mark.parametrize("wait", [True, False])
async def test_release_gives_the_worker_back(serve, wait):
    """After release() the request holds no worker; its next call takes one and holds it again."""
    leased = []

    async def view(request):
        async def parts():
            await sync_to_async(thread_name)()
            leased.append(len(stats().holders))
            await release()
            if wait:
                await no_worker_is_leased()
            leased.append(len(stats().holders) if wait else 0)
            first = await sync_to_async(thread_name)()
            leased.append(len(stats().holders))
            yield str(first == await sync_to_async(thread_name)())

        return StreamingHttpResponse(parts())

    assert await get(serve(view)) == "200 True"
    await no_worker_is_leased()
    assert leased == [1, 0, 1] if wait else leased[0] == 1


@pytest.mark.django_db(transaction=True)
async def test_release_leaves_a_transaction_alone(serve):
    """release() in a transaction gives the worker back when the transaction has ended."""

    async def view(request):
        block = transaction.atomic()
        await sync_to_async(block.__enter__)()
        await User.objects.acreate(username="ada")
        await release()
        await User.objects.acreate(username="eve")
        await sync_to_async(block.__exit__)(None, None, None)
        return HttpResponse()

    await get(serve(view))
    assert await database_sync_to_async(User.objects.count)() == 2


async def test_release_below_a_sync_frame(serve):
    """release() below sync middleware counts when that has ended: the stream holds no worker."""
    leased = []

    async def view(request):
        await release()

        async def parts():
            await no_worker_is_leased()
            leased.append(stats().threads - stats().idle)
            yield "done"

        return StreamingHttpResponse(parts())

    assert await get(serve(view, f"{__name__}.SyncOnly")) == "200 done"
    assert leased == [0]


async def test_release_without_a_lease_does_nothing():
    """release() outside of any request does nothing."""
    await release()
    assert stats().threads == 0


async def test_many_released_streams_hold_no_worker(serve, pool_settings):
    """A thousand open streams that gave their workers back hold none."""
    pool_settings(MAX_THREADS=2)
    go_on = asyncio.Event()
    streaming = []

    async def view(request):
        async def parts():
            await sync_to_async(thread_name)()
            await release()
            streaming.append(request)
            await go_on.wait()
            yield "done"

        return StreamingHttpResponse(parts())

    application = serve(view)
    clients = [asyncio.create_task(get(application)) for _ in range(1000)]
    await until(lambda: len(streaming) == 1000)
    await no_worker_is_leased()
    assert stats().threads <= 2
    go_on.set()
    assert set(await asyncio.gather(*clients)) == {"200 done"}


@pytest.mark.parametrize("kind", ["lifespan", "mqtt"])
async def test_other_scopes_pass_through(kind):
    """The application gets scope, receive and send of lifespan and unknown scopes as they came."""
    seen = []

    async def application(scope, receive, send):
        seen.extend([scope, receive, send, await sync_to_async(thread_name)()])

    scope, receive, send = {"type": kind}, mock.AsyncMock(), mock.AsyncMock()
    await BridgeMiddleware(application)(scope, receive, send)
    assert seen[0] is scope
    assert seen[1:3] == [receive, send]
    assert not seen[3].startswith("ormbridge-worker")


def test_below_a_live_frame_it_passes_through():
    """Below async_to_sync, as in Django's TestCase, calls run on the thread that waits."""
    names = []

    async def application(scope, receive, send):
        names.append(await sync_to_async(thread_name)())

    scope = {"type": "http", "method": "GET", "path": "/"}
    async_to_sync(BridgeMiddleware(application))(scope, mock.AsyncMock(), mock.AsyncMock())
    assert names == [thread_name()]
    assert stats().threads == 0


async def test_nested_middleware_passes_through(serve, pool_settings):
    """An application that is wrapped twice has one lease for a request, not two."""
    pool_settings(MAX_THREADS=1)

    async def view(request):
        await sync_to_async(thread_name)()
        return HttpResponse(str(len(stats().holders)))

    def twice(application):
        return BridgeMiddleware(BridgeMiddleware(application))

    assert await get(serve(view, wrapper=twice)) == "200 1"


async def test_context_of_the_caller_is_restored(serve):
    """Calls that a task makes after the application returned do not count as the request's."""

    async def application(scope, receive, send):
        await sync_to_async(thread_name)()

    scope = {"type": "http", "method": "GET", "path": "/"}
    await BridgeMiddleware(application)(scope, mock.AsyncMock(), mock.AsyncMock())
    assert not (await sync_to_async(thread_name)()).startswith("ormbridge-worker")


def test_what_is_not_callable_is_refused():
    """BridgeMiddleware takes a callable, and names what it got instead."""
    with pytest.raises(TypeError) as caught:
        BridgeMiddleware("app.asgi.application")
    assert str(caught.value) == (
        "BridgeMiddleware takes an ASGI application, and 'app.asgi.application' is not callable"
    )


async def test_last_message_gives_the_worker_back():
    """The worker is free for others once the last message of the response goes out."""

    async def application(scope, receive, send):
        await sync_to_async(thread_name)()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        held = len(stats().holders)
        await send({"type": "http.response.body", "body": str(held).encode()})
        await no_worker_is_leased()

    assert await get(BridgeMiddleware(application)) == "200 a1"


async def test_thread_sensitive_false_beside_the_first_call(serve, pool_settings):
    """Gathered with the first call of a request, which waits for the only worker, it waits too."""
    pool_settings(MAX_THREADS=1)

    async def view(request):
        first = sync_to_async(thread_name)()
        free = database_sync_to_async(thread_name, thread_sensitive=False)()
        return HttpResponse(" ".join(await asyncio.gather(first, free)))

    await database_sync_to_async(thread_name)()
    assert await get(serve(view)) == "200 ormbridge-worker-1 ormbridge-worker-1"


@pytest.mark.django_db(transaction=True)
async def test_thread_sensitive_false_does_not_join_a_transaction_by_hand(serve, pool_settings):
    """A transaction without an atomic block is one too: thread_sensitive=False stays out."""
    pool_settings(MAX_THREADS=1)

    async def view(request):
        await sync_to_async(transaction.set_autocommit)(False)
        with pytest.raises(PoolTimeout, match="which it must not join"):
            await database_sync_to_async(thread_name, thread_sensitive=False)()
        await sync_to_async(transaction.set_autocommit)(True)
        return HttpResponse("refused")

    assert await get(serve(view)) == "200 refused"


async def test_request_that_begins_inside_an_answered_one_is_its_own():
    """Servers start the next request where the last message of one goes out: it is not nested."""
    leases = []
    requests = []
    scope = {"type": "http", "method": "GET", "path": "/"}

    async def send(message):
        if message["type"] == "http.response.body" and len(requests) == 1:
            requests.append(asyncio.create_task(application(scope, mock.AsyncMock(), send)))
            await requests[1]

    async def inner(scope, receive, send):
        await sync_to_async(thread_name)()
        leases.append(routes.current_route.get())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    application = BridgeMiddleware(inner)
    requests.append(asyncio.create_task(application(scope, mock.AsyncMock(), send)))
    await requests[0]
    assert len(leases) == 2
    assert leases[0] is not leases[1]


@pytest.mark.django_db(transaction=True)
async def test_request_that_begins_inside_a_block_is_not_in_it():
    """A request that is answered inside atomic() leaves the next one outside of the transaction."""
    requests = []
    scope = {"type": "http", "method": "GET", "path": "/"}

    async def send(message):
        if message["type"] == "http.response.body" and len(requests) == 1:
            requests.append(asyncio.create_task(application(scope, mock.AsyncMock(), send)))
            await requests[1]

    async def respond(send):
        in_transaction.append(await sync_to_async(lambda: connection.in_atomic_block)())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def inner(scope, receive, send):
        if len(requests) == 1:
            async with atomic():
                await respond(send)
        else:
            await respond(send)

    in_transaction = []
    application = BridgeMiddleware(inner)
    requests.append(asyncio.create_task(application(scope, mock.AsyncMock(), send)))
    await requests[0]
    assert in_transaction == [True, False]


async def test_headers_that_are_an_iterator():
    """The server finds all of them, as Sanic sends them: the middleware has not used them up."""
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"4")]
    sent = []

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": iter(headers)})
        await send({"type": "http.response.body", "body": b"done"})

    async def send(message):
        sent.extend(message.get("headers", ()))

    scope = {"type": "http", "method": "GET", "path": "/"}
    await BridgeMiddleware(application)(scope, mock.AsyncMock(), send)
    assert sent == headers


@pytest.mark.django_db(transaction=True)
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_body_of_known_length_that_queries_keeps_its_worker(serve, connection_settings, kind):
    """What its view has set on the connection is there for each query of the body."""
    connection_settings(CONN_MAX_AGE=0)  # at its end it is gone

    def set_tenant():
        User.objects.count()
        connection.tenant = "a"

    def get_tenant():
        User.objects.count()
        return getattr(connection, "tenant", "-")

    async def asynchronous():
        for _ in range(3):
            yield await database_sync_to_async(get_tenant)()

    def synchronous():
        for _ in range(3):
            yield get_tenant()

    async def view(request):
        await database_sync_to_async(set_tenant)()
        content = asynchronous() if kind == "async" else synchronous()
        return StreamingHttpResponse(content, headers={"Content-Length": "3"})

    assert await get(serve(view)) == "200 aaa"
    await no_worker_is_leased()


async def test_own_aclose_old_connections_takes_no_worker():
    """In a request there is nothing to do for aclose_old_connections()."""

    async def application(scope, receive, send):
        await aclose_old_connections()

    scope = {"type": "http", "method": "GET", "path": "/"}
    await BridgeMiddleware(application)(scope, mock.AsyncMock(), mock.AsyncMock())
    assert stats().threads == 0
