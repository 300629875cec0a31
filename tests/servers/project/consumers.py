"""Consumers as people write them, on ``channels.db``: nothing in them knows of the bridge."""

from typing import Any

from channels.consumer import AsyncConsumer
from channels.db import database_sync_to_async
from channels.exceptions import StopConsumer
from channels.generic.websocket import JsonWebsocketConsumer, WebsocketConsumer

from tests.servers.project import queries

QUERIES = {"count": queries.count, "sleep": queries.sleep, "wait": queries.wait}


class Sync(WebsocketConsumer):
    """Runs the query that the text names, then sends the text back."""

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        QUERIES[text_data]()
        self.send(text_data)


class Json(JsonWebsocketConsumer):
    """The same in JSON."""

    def receive_json(self, content: Any) -> None:
        QUERIES[content["query"]]()
        self.send_json(content)


class Async(AsyncConsumer):
    """The same in async code, without any help of Channels' generic consumers."""

    async def websocket_connect(self, event: dict[str, Any]) -> None:
        await self.send({"type": "websocket.accept"})

    async def websocket_receive(self, event: dict[str, Any]) -> None:
        await database_sync_to_async(QUERIES[event["text"]])()
        await self.send({"type": "websocket.send", "text": event["text"]})

    async def websocket_disconnect(self, event: dict[str, Any]) -> None:
        raise StopConsumer
