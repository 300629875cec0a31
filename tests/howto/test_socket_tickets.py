"""The page ``howto/socket-tickets``: a socket without a cookie."""

import httpx
import pytest
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.core.signing import TimestampSigner
from django.urls import path

from ormbridge import BridgeMiddleware, database_sync_to_async
from tests.howto.sockets import call, connect
from tests.support.http import disconnect

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("site")]


class Hello(AsyncWebsocketConsumer):
    """A consumer that says for whom it takes you."""

    async def connect(self):
        await self.accept()
        await self.send(f"Hello, {self.scope['user'].username or 'stranger'}")


@pytest.fixture
def tickets(load_example):
    """Return the example, and an application of Channels in its middleware."""
    module = load_example("socket_tickets/ticket")
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
    recorded("socket_tickets/ticket", "\n".join(seen))


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


async def test_validator_of_origins(ada, tickets):
    """The validator refuses apps and other domains, ticket or not; without it both are let in."""
    module, application = tickets
    query = f"ticket={module.signer.sign_object(ada.pk)}"
    seen = {}
    for name, each in {
        "with": AllowedHostsOriginValidator(application),
        "without": application,
    }.items():
        app, page = call(each, query=query), call(each, query=query, origin="https://shop.test")
        app.scope["headers"] = []
        for socket in (app, page):
            seen.setdefault(name, []).append(await connect(socket))
            await disconnect(socket)
    assert seen == {"with": ["close"] * 2, "without": ["accept, Hello, ada"] * 2}
