"""Read an example as a reader pastes it, and talk to its consumer."""

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from asgiref.testing import ApplicationCommunicator

from tests import settings
from tests.core.gate import GUARD

EXAMPLES = Path(__file__).parents[2] / "examples"


def example_source(name: str, package: str = "ormbridge") -> str:
    """Return the source of *name*, with the import of the bridge taken from *package* instead."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    if package == "ormbridge":
        return source
    source, count = re.subn(
        r"^from ormbridge import", f"from {package} import", source, flags=re.MULTILINE
    )
    # Without this the drop-in test would run the bridge twice and prove nothing.
    assert count == 1, f"{name}.py has {count} lines 'from ormbridge import ...', expected 1"
    return source


@contextmanager
def alone_on_postgresql() -> Iterator[None]:
    """Wait for others on the server that run an example in here: one makes a role, and a table."""
    psycopg = importlib.import_module("psycopg")
    server = {
        key.lower(): settings.postgresql()[key] for key in ("HOST", "PORT", "USER", "PASSWORD")
    }
    with psycopg.connect(**server, dbname="postgres", autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(hashtext('the examples of ormbridge'))")
        yield


async def conversation(consumer: type) -> str:
    """Connect to *consumer*, receive one text frame, disconnect; return what was seen.

    With asgiref's communicator, not Channels': that one switches the clean-up of connections off.
    """
    client = ApplicationCommunicator(consumer.as_asgi(), {"type": "websocket", "path": "/"})
    await client.send_input({"type": "websocket.connect"})
    seen = [await client.receive_output(GUARD), await client.receive_output(GUARD)]
    await client.send_input({"type": "websocket.disconnect", "code": 1000})
    await client.wait(GUARD)
    return "\n".join(f"{event['type']} {event.get('text') or ''}".rstrip() for event in seen)
