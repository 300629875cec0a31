"""A small client for HTTP/1.1 on asyncio's streams: one connection for each request."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple


class Response(NamedTuple):
    """An answer: its status and its body, chunks put together."""

    status: int
    body: str


class CutError(ConnectionError):
    """The server closed the connection before the answer was complete."""


@asynccontextmanager
async def opened(port: int, path: str) -> AsyncIterator[asyncio.StreamReader]:
    """Ask for *path*; closing the block closes the connection, whatever came until then."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        yield reader
    finally:
        # At once: waiting for a goodbye would be of use to nobody.
        writer.transport.abort()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Return the status and the headers, names in lower case."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        raise CutError("closed before the answer began") from None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    return int(first.split()[1]), headers


async def read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> str:
    """Return the whole body."""
    try:
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += (await reader.readexactly(size + 2))[:-2]
        elif "content-length" in headers:
            body = await reader.readexactly(int(headers["content-length"]))
        else:
            body = await reader.read()
    except asyncio.IncompleteReadError:
        raise CutError("closed before the answer was complete") from None
    return body.decode()


async def get(port: int, path: str) -> Response:
    """Ask for *path* and read all of the answer."""
    async with opened(port, path) as reader:
        status, headers = await read_head(reader)
        return Response(status, await read_body(reader, headers))
