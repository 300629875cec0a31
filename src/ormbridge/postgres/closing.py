"""Wait until PostgreSQL has closed its end of a connection (a part of step 4 of a call)."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from ..core import hooks
from .stopped import socket_of

# Seconds to wait for the server to close its end, at the most.
_PATIENCE = 1.0


@contextmanager
def seen_by_server(raw: Any) -> Generator[None, None, None]:
    """If the block closes *raw*, a connection to PostgreSQL, wait until the server is done with it.

    The server goes on counting a connection until its process for it has ended. A worker that
    connected anew before that would be two for a moment.
    """
    watch = None
    if hasattr(raw, "pgconn"):  # psycopg 3
        with suppress(Exception):  # broken or closed
            watch = socket_of(raw)
    yield
    if watch is not None:
        with watch, suppress(OSError):
            watch.settimeout(_PATIENCE)
            while raw.closed and watch.recv(4096):  # b"": the server has closed its end
                pass


hooks.closing.append(seen_by_server)
