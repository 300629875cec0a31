"""The page ``howto/socket-authentication``: who is on the other end of a socket."""

import httpx
import pytest
from asgiref.testing import ApplicationCommunicator
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.core.signing import TimestampSigner
from django.test import Client
from django.urls import path

from ormbridge import BridgeMiddleware, database_sync_to_async, stats
from tests.core.gate import GUARD
from tests.support.http import disconnect

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def session(ada):
    """Log ada in, and return the key of her session."""
    client = Client()
    client.force_login(ada)
    return client.cookies["sessionid"].value


@pytest.fixture(autouse=True)
def site(settings):
    """Serve this site alone."""
    settings.ALLOWED_HOSTS = ["example.com"]
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]


def call(application, where="/ws/chat/", origin="https://example.com", session="", query=""):
    """Return a socket that asks *application* to be let in."""
    headers = [(b"origin", origin.encode()), (b"cookie", f"sessionid={session}".encode())]
    scope = {
        "type": "websocket",
        "path": where,
        "headers": headers,
        "query_string": query.encode(),
        "subprotocols": [],
    }
    return ApplicationCommunicator(application, scope)


async def connect(socket):
    """Connect, and return the types and texts that the other end sends first."""
    await socket.send_input({"type": "websocket.connect"})
    first = await socket.receive_output(GUARD)
    if first["type"] == "websocket.close":
        await disconnect(socket)
        return "close"
    return f"accept, {(await socket.receive_output(GUARD))['text']}"


async def say(socket, text):
    await socket.send_input({"type": "websocket.receive", "text": text})
    answer = await socket.receive_output(GUARD)
    return answer.get("text") or f"close {answer['code']}"


# With a session.


async def test_session(ada, session, load_example, recorded):
    """Who is logged in is let in, until she is locked out; a stranger is not."""
    application = load_example("socket_authentication/session").application
    seen = [f"a stranger: {await connect(call(application))}"]
    socket = call(application, session=session)
    seen.append(f"ada: {await connect(socket)}")
    seen.append(f"she says hi: {await say(socket, 'hi')}")
    await User.objects.filter(pk=ada.pk).aupdate(is_active=False)
    seen.append(f"locked out, she says hi: {await say(socket, 'hi')}")
    await disconnect(socket)
    recorded("socket_authentication/session", "\n".join(seen))


async def test_other_site_is_refused(session, load_example):
    """A page of another site cannot open the socket with the session of its visitor."""
    application = load_example("socket_authentication/session").application
    assert await connect(call(application, session=session, origin="https://evil.test")) == "close"


async def test_user_is_read_once(ada, session, load_example):
    """The user in the scope stays as it was when the socket was opened."""
    module = load_example("socket_authentication/session")

    class Stale(module.ChatConsumer):
        async def receive(self, text_data):
            await self.send(f"active: {self.scope['user'].is_active}")

    module.sockets.routes[0].callback = Stale.as_asgi()
    socket = call(module.application, session=session)
    await connect(socket)
    await User.objects.filter(pk=ada.pk).aupdate(is_active=False)
    assert await say(socket, "") == "active: True"
    await disconnect(socket)


async def test_user_is_read_on_a_worker(session, load_example):
    """Session and user are read through the pool."""
    application = load_example("socket_authentication/session").application
    socket = call(application, session=session)
    await connect(socket)
    assert stats().calls > 0
    await disconnect(socket)


# With a ticket.


class Hello(AsyncWebsocketConsumer):
    """A consumer that says for whom it takes you."""

    async def connect(self):
        await self.accept()
        await self.send(f"Hello, {self.scope['user'].username or 'stranger'}")


@pytest.fixture
def tickets(load_example):
    """Return the example, and an application of Channels in its middleware."""
    module = load_example("socket_authentication/ticket")
    return module, BridgeMiddleware(module.TicketMiddleware(Hello.as_asgi()))


async def test_ticket(settings, session, tickets, recorded):
    """A view gives out a ticket, and the socket comes with it."""
    module, application = tickets
    settings.ROOT_URLCONF = (path("ticket/", module.ticket),)
    transport = httpx.ASGITransport(BridgeMiddleware(get_asgi_application()))
    cookies = {"sessionid": session}
    async with httpx.AsyncClient(
        transport=transport, base_url="https://example.com", cookies=cookies
    ) as browser:
        given = (await browser.get("/ticket/")).json()["ticket"]
    seen = []
    for what, query in {"with the ticket": given, "with a forged one": f"{given}x"}.items():
        socket = call(application, query=f"ticket={query}")
        seen.append(f"{what}: {await connect(socket)}")
        await disconnect(socket)
    recorded("socket_authentication/ticket", "\n".join(seen))


@pytest.mark.parametrize("query", ["", "ticket=", "ticket=a&ticket=b", "other=1"])
async def test_without_a_ticket(tickets, query):
    """Who has none is a stranger, and nothing fails."""
    socket = call(tickets[1], query=query)
    assert await connect(socket) == "accept, Hello, stranger"
    await disconnect(socket)


async def test_old_ticket(ada, tickets, monkeypatch):
    """A ticket of half a minute ago is none."""
    module, application = tickets
    with monkeypatch.context() as patch:
        patch.setattr(TimestampSigner, "timestamp", lambda self: "1")
        old = module.signer.sign_object(ada.pk)
    socket = call(application, query=f"ticket={old}")
    assert await connect(socket) == "accept, Hello, stranger"
    await disconnect(socket)


async def test_ticket_of_who_was_locked_out(ada, tickets):
    """A ticket does not outlive the account."""
    module, application = tickets
    given = module.signer.sign_object(ada.pk)
    ada.is_active = False
    await database_sync_to_async(ada.save)()
    socket = call(application, query=f"ticket={given}")
    assert await connect(socket) == "accept, Hello, stranger"
    await disconnect(socket)
