"""The rows of ASGI: a request to Django's handler, a message to a consumer of Channels.

There is no server here, whose parser would hide the difference: a call hands the application what a
server would hand it, and waits for what it sends back.
"""

import asyncio

from channels.generic.websocket import AsyncWebsocketConsumer
from django.http import HttpResponse
from django.urls import path

from tests.bench import Failed
from tests.bench.rows import BARE, OURS

GET = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "query_string": b"",
    "root_path": "",
    "headers": [(b"host", b"localhost"), (b"user-agent", b"bench")],
    "client": ("127.0.0.1", 50000),
    "server": ("127.0.0.1", 8000),
}
GONE = {"type": "http.disconnect"}


async def view(request):
    """Make one query."""
    from django.contrib.auth.models import User

    user = await User.objects.afirst()
    return HttpResponse(user.username)


async def slow(request):
    """Make a query that takes a second."""
    from django.contrib.auth.models import User
    from django.db.models import CharField, Func, Value

    sleep = Func(Value(1.0), function="pg_sleep", output_field=CharField())
    user = await User.objects.annotate(slept=sleep).afirst()
    return HttpResponse(user.username)


urlpatterns = [path("", view), path("slow", slow)]


class Echo(AsyncWebsocketConsumer):
    """Send each message back, and touch no database."""

    async def receive(self, text_data=None, bytes_data=None):
        """Send the message back."""
        await self.send(text_data=text_data)


def bridged(name, application):
    """Put the middleware around the application, if contestant `name` has it."""
    if name == OURS:
        from ormbridge import BridgeMiddleware

        return BridgeMiddleware(application)
    return application


def get(name, path="/", patience=None):
    """Return what makes one request to Django, in a task of its own as in a server.

    :param patience: seconds after which the client leaves, if it has no answer. Then it raises
        :exc:`Failed`, with nothing; the application may take longer to end.
    """
    from django.core.asgi import get_asgi_application

    application, left = bridged(name, get_asgi_application()), set()

    async def call():
        sent = []

        async def answer(message):
            sent.append(message)

        requests = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive():
            # The client stays until it has its answer, or has no more patience.
            if request := next(requests, None):
                return request
            gone = asyncio.get_running_loop().create_future()
            return await (gone if patience is None else asyncio.sleep(patience, GONE))

        serving = asyncio.create_task(application({**GET, "path": path}, receive, answer))
        await asyncio.wait([serving], timeout=patience)
        if not serving.done():
            left.add(serving)
            serving.add_done_callback(left.discard)
            raise Failed
        serving.result()
        if (sent[0]["status"], sent[1]["body"]) != (200, b"alice"):
            raise Failed(sent)

    return call


def connector(name):
    """Return what opens a WebSocket: the task that serves it, what the client says, what it hears.

    It is the consumer inside the middleware, if contestant `name` has it.
    """
    from channels import consumer

    if name == BARE:

        async def nothing():
            pass

        consumer.aclose_old_connections = nothing
    application = bridged(name, Echo.as_asgi())

    async def connect():
        said, heard = asyncio.Queue(), asyncio.Queue()
        scope = {"type": "websocket", "path": "/", "headers": []}
        serving = asyncio.create_task(application(scope, said.get, heard.put))
        serving.add_done_callback(lambda _: heard.put_nowait({"type": "ended"}))
        said.put_nowait({"type": "websocket.connect"})
        if (await heard.get())["type"] != "websocket.accept":
            raise RuntimeError("the application did not accept the socket")
        return serving, said, heard

    return connect


def echo(name):
    """Return what sends one message on a WebSocket that is free, and waits for the echo."""
    connect, sockets = connector(name), []

    async def call():
        serving, said, heard = sockets.pop() if sockets else await connect()
        said.put_nowait({"type": "websocket.receive", "text": "hello"})
        message = await heard.get()
        if message != {"type": "websocket.send", "text": "hello"}:
            raise RuntimeError(f"no echo: {message}")
        sockets.append((serving, said, heard))

    return call
