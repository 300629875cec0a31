"""Clients that cost little: HTTP with a connection that is kept, and WebSocket, on streams."""

import asyncio
import json

HOST = "127.0.0.1"
TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A


class Failed(Exception):  # noqa: N818 - what a client counts
    """Raised by a client that was not answered as it should be."""


class Http:
    """A client with a connection of its own, which asks for one path again and again."""

    def __init__(self, port, path="/"):
        self.port = port
        self.head = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
        self.writer = None

    async def once(self):
        """Ask, and read the whole answer."""
        try:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection(HOST, self.port)
            self.writer.write(self.head)
            head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await self.reader.readexactly(length)
        except (OSError, EOFError, ValueError) as error:
            self.close()
            raise Failed(str(error)) from error
        if b" 200 " not in head[:20]:
            raise Failed(head[:20].decode())

    def close(self):
        """Close the connection; the next request opens one."""
        if self.writer is not None:
            self.writer.transport.abort()
            self.writer = None


class Socket:
    """A WebSocket to *room*, for messages of less than 126 bytes."""

    def __init__(self, port, room):
        self.port = port
        self.head = (
            f"GET /ws/{room}/ HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        ).encode()

    async def open(self):
        """Connect; return what the consumer says first."""
        try:
            self.reader, self.writer = await asyncio.open_connection(HOST, self.port)
            self.writer.write(self.head)
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (OSError, EOFError) as error:
            raise Failed(str(error)) from error
        if b" 101 " not in head[:20]:
            raise Failed(head[:20].decode())
        return await self.heard()

    def say(self, message):
        """Send *message*. The mask is one of zeros, under which the text is as it was."""
        text = json.dumps(message).encode()
        self.writer.write(bytes([TEXT, 0x80 | len(text), 0, 0, 0, 0]) + text)

    async def heard(self):
        """Return the next message."""
        try:
            while True:
                kind, length = await self.reader.readexactly(2)
                text = await self.reader.readexactly(length)
                if kind != PING:
                    break
                self.writer.write(bytes([PONG, 0x80 | length, 0, 0, 0, 0]) + text)
        except (OSError, EOFError) as error:
            raise Failed(str(error)) from error
        if kind != TEXT:
            raise Failed(f"a frame of kind {kind:#x}")
        return json.loads(text)

    def close(self):
        """Say goodbye and leave."""
        self.writer.write(bytes([CLOSE, 0x82, 0, 0, 0, 0, 0x03, 0xE8]))
        self.writer.close()
