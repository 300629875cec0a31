"""A request that holds a worker as the interpreter exits."""

import pytest

from tests.core.support import run

# The processes use the test database of this run.
pytestmark = pytest.mark.django_db(transaction=True)


HELD = """
from asgiref.sync import sync_to_async
from ormbridge import BridgeMiddleware

held, ended = threading.Event(), asyncio.Event()

async def application(scope, receive, send):
    await sync_to_async(lambda: connection.ensure_connection())()
    held.set()
    try:
        await ended.wait()
    finally:
        try:
            await sync_to_async(print)("must not run")
        except PoolClosed as error:
            print(type(error).__name__, error, flush=True)

request = BridgeMiddleware(application)({"type": "http", "method": "GET", "path": "/"}, None, None)

"""


def test_lease_that_is_held_does_not_keep_the_process():
    """A request that holds a worker when the interpreter exits loses it; the process ends."""
    result = run(
        HELD
        + """
loop = asyncio.new_event_loop()
task = loop.create_task(request)
threading.Thread(target=loop.run_forever, daemon=True).start()
held.wait()

def end():
    loop.call_soon_threadsafe(ended.set)
    while not task.done():
        time.sleep(0.001)

# Runs once the pool is closed.
import atexit
atexit.register(end)
print(stats().holders[0][1], flush=True)
"""
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "GET /, idle",
        "PoolClosed GET /, in builtins.print came too late: the interpreter exits, no calls are "
        "taken [exiting]",
    ]
    assert result.returncode == 0
