"""A browser that opens a socket, with the headers that it sends."""

from typing import Any

from asgiref.testing import ApplicationCommunicator

from tests.core.gate import GUARD
from tests.support.http import disconnect


def call(
    application: Any,
    where: str = "/ws/chat/",
    origin: str = "https://example.com",
    session: str = "",
    query: str = "",
) -> ApplicationCommunicator:
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


async def connect(socket: ApplicationCommunicator) -> str:
    """Connect, and return what the other end does first."""
    await socket.send_input({"type": "websocket.connect"})
    first = await socket.receive_output(GUARD)
    if first["type"] == "websocket.close":
        await disconnect(socket)
        return "close"
    return f"accept, {(await socket.receive_output(GUARD))['text']}"


async def say(socket: ApplicationCommunicator, text: str) -> str:
    """Send *text*, and return the answer: a text, or that it was closed."""
    await socket.send_input({"type": "websocket.receive", "text": text})
    answer = await socket.receive_output(GUARD)
    return answer.get("text") or f"close {answer['code']}"
