"""Talk to an ASGI application as a server does, without a test client around it.

Test clients of Django and Channels do more than a server: they send signals, mock the clean-up of
connections and run the application in the context of the test.
"""

from typing import Any

from asgiref.testing import ApplicationCommunicator
from django.http import HttpRequest, HttpResponse

from tests.core.gate import GUARD

SERVER: dict[str, Any] = {"server": ("localhost", 80), "headers": []}


async def pong(request: HttpRequest) -> HttpResponse:
    """Answer without a query."""
    return HttpResponse("pong")


def request(application: Any, path: str = "/") -> ApplicationCommunicator:
    """Return a client that asks for *path*; send it ``http.request`` or use :func:`get`."""
    scope = {"type": "http", "method": "GET", "path": path}
    return ApplicationCommunicator(application, {**scope, **SERVER})


async def get(application: Any, path: str = "/") -> str:
    """Return status and body of the whole response to *path*, such as ``200 Hello``."""
    client = request(application, path)
    await client.send_input({"type": "http.request"})
    start = await client.receive_output(GUARD)
    parts = []
    more = True
    while more:
        message = await client.receive_output(GUARD)
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    await client.wait(GUARD)
    return f"{start['status']} {b''.join(parts).decode()}".rstrip()


async def connect(application: Any, path: str = "/") -> ApplicationCommunicator:
    """Return a WebSocket to *path* that *application* has accepted."""
    scope = {"type": "websocket", "path": path}
    socket = ApplicationCommunicator(application, {**scope, **SERVER})
    await socket.send_input({"type": "websocket.connect"})
    assert (await socket.receive_output(GUARD))["type"] == "websocket.accept"
    return socket


async def say(socket: ApplicationCommunicator, text: str = "") -> str:
    """Send *text* on *socket* and return the text of the answer."""
    await socket.send_input({"type": "websocket.receive", "text": text})
    answer: str = (await socket.receive_output(GUARD))["text"]
    return answer


async def disconnect(*sockets: ApplicationCommunicator) -> None:
    """Close *sockets* and wait until their consumers have ended."""
    for socket in sockets:
        await socket.send_input({"type": "websocket.disconnect", "code": 1000})
    for socket in sockets:
        await socket.wait(GUARD)
