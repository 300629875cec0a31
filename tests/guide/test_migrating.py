"""The page ``guide/migrating``: its examples, and the claims it makes."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from channels import db as channels_db
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import User
from django.db import connection, connections, transaction

import ormbridge
from ormbridge import BridgeMiddleware, database_sync_to_async, pinned, stats
from tests.settings import CHOICE, DATABASES
from tests.support.examples import example_source
from tests.support.http import connect, disconnect, say

# The examples, in the order of the page.


def test_asgi_threads(run_script, recorded):
    """Whatever ``ASGI_THREADS`` says, calls of ``channels.db`` share one thread."""
    output = run_script(example_source("migrating/asgi_threads"), ASGI_THREADS="10")
    recorded("migrating/asgi_threads", output)


if CHOICE == "postgresql":  # nothing is cancelled elsewhere

    @pytest.mark.parametrize("way", ["before", "after", "atomic", "shield"])
    def test_cancelled_half_way(run_script, recorded, way):
        """Cancelled between two writes, ``channels.db`` makes both, and the bridge one.

        In a transaction the bridge makes none; shielded, both.
        """
        server = {
            f"PG{key}": DATABASES["default"][key] for key in ("HOST", "PORT", "USER", "PASSWORD")
        }
        name = f"migrating/cancel_{way}"
        recorded(name, run_script(example_source(name), **server))


def test_cancelled_half_way_differs_in_the_import():
    """The programs with ``channels.db`` and with the bridge differ in the import alone."""
    before, after = (
        set(example_source(f"migrating/cancel_{way}").splitlines()) for way in ("before", "after")
    )
    assert before - after == {"from channels.db import database_sync_to_async  # <--"}
    assert after - before == {"from ormbridge import database_sync_to_async  # <--"}


@pytest.mark.parametrize("way", ["before", "after"])
def test_locked(run_script, recorded, way):
    """On SQLite, of transactions that read and then write at one time, one is saved."""
    recorded(f"migrating/locked_{way}", run_script(example_source(f"migrating/locked_{way}")))


def test_locked_is_not_a_matter_of_time(run_script):
    """The others are refused however long they would wait; with ``channels.db`` none is."""
    source = example_source("migrating/locked_before")
    patient = source.replace('"NAME": "', '"OPTIONS": {"timeout": 86400}, "NAME": "')
    assert patient != source
    assert run_script(patient) == "{'database is locked'}\n"
    one_thread = source.replace("from ormbridge", "from channels.db").replace("visits.", "other.")
    assert run_script(one_thread) == "all saved\n"


@pytest.mark.parametrize("way", ["before", "after"])
def test_ping(run_script, recorded, way):
    """A message that needs no database waits for a slow handler, but not under the middleware."""
    recorded(f"migrating/ping_{way}", run_script(example_source(f"migrating/ping_{way}")))


@pytest.mark.parametrize("way", ["before", "after"])
def test_thread_sensitive_false(run_script, recorded, way):
    """Twenty calls open twenty connections; with the bridge as many as there are workers."""
    name = f"migrating/thread_sensitive_{way}"
    recorded(name, run_script(example_source(name)))


@pytest.mark.parametrize("way", ["before", "after"])
def test_deadlock(run_script, recorded, way):
    """``asyncio.run`` on asgiref's thread cannot call again; on a worker it can."""
    name = f"migrating/deadlock_{way}"
    recorded(name, run_script(example_source(name)))


@pytest.mark.parametrize("way", ["before", "after"])
def test_context_per_consumer(run_script, recorded, way):
    """A context for each consumer holds a thread for each open socket; the middleware none."""
    name = f"migrating/context_{way}"
    recorded(name, run_script(example_source(name)))


# What differs: channels.db first, the bridge second.


def get_own_connection():
    """Return Django's connection of the calling thread, opened."""
    own = connections["default"]
    own.ensure_connection()
    return own


async def test_calls_of_channels_share_a_connection(transactional_db):
    """Calls of ``channels.db`` have one connection between them."""
    call = channels_db.database_sync_to_async(get_own_connection)
    assert await call() is await call()


async def test_calls_of_the_bridge_may_have_different_connections(transactional_db, gate):
    """A call of the bridge has another connection than one that ran on another worker."""
    call = database_sync_to_async(get_own_connection)
    first = await call()
    held = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    assert await call() is not first
    gate.open.set()
    await held


@pytest.mark.parametrize(("package", "at_once"), [(channels_db, 1), (ormbridge, 2)])
async def test_calls_made_at_once(package, at_once, gate):
    """Calls made at once take turns with ``channels.db``, and run together with the bridge."""
    call = package.database_sync_to_async(gate)
    calls = [asyncio.create_task(call()) for _ in range(2)]
    await gate.entered(at_once)
    assert len(gate.threads) == at_once
    gate.open.set()
    await asyncio.gather(*calls)


@pytest.mark.parametrize(("package", "closed"), [(channels_db, True), (ormbridge, False)])
def test_connection_of_a_transaction_around(transactional_db, package, closed):
    """Below ``async_to_sync``, a call of ``channels.db`` closes the connection of a transaction.

    What was written is lost, without an error. The bridge leaves it alone.
    """
    with transaction.atomic():
        User.objects.create(username="ada")
        async_to_sync(package.database_sync_to_async(int))()
        assert connection.closed_in_transaction is closed
    assert User.objects.exists() is not closed


@pytest.mark.parametrize(("package", "on_a_worker"), [(channels_db, False), (ormbridge, True)])
async def test_thread_sensitive_false_runs_in_parallel(package, on_a_worker, gate):
    """With ``thread_sensitive=False`` calls of both packages run at the same time."""
    call = package.database_sync_to_async(gate, thread_sensitive=False)
    calls = [asyncio.create_task(call()) for _ in range(2)]
    await gate.entered(2)
    gate.open.set()
    names = await asyncio.gather(*calls)
    assert {name.startswith("ormbridge-worker") for name in names} == {on_a_worker}


async def test_sync_to_async_closes_nothing(transactional_db):
    """A call of ``sync_to_async`` goes on with a connection older than ``CONN_MAX_AGE``."""
    assert await survives_its_age(sync_to_async) is True


async def test_bridge_closes_what_is_too_old(transactional_db, pool_settings):
    """A call of the bridge never meets a connection older than ``CONN_MAX_AGE``."""
    pool_settings(MAX_THREADS=1)
    assert await survives_its_age(database_sync_to_async) is False


async def survives_its_age(bridge):
    """Say whether a call meets the connection of the call before, which has become too old."""

    def open_and_age():
        connection.ensure_connection()
        connection.close_at = 0.0
        return connection.connection

    return await bridge(open_and_age)() is await bridge(lambda: connection.connection)()


# From a context for each consumer.


async def test_context_inside_the_middleware_changes_nothing():
    """Under the middleware a ``ThreadSensitiveContext`` of a consumer holds no thread."""

    class Consumer(AsyncWebsocketConsumer):
        async def __call__(self, scope, receive, send):
            async with ThreadSensitiveContext():
                await super().__call__(scope, receive, send)

        async def receive(self, text_data):
            name = await sync_to_async(lambda: threading.current_thread().name)()
            await self.send(text_data=name)

    application = BridgeMiddleware(Consumer.as_asgi())
    sockets = [await connect(application) for _ in range(3)]
    assert {await say(socket) for socket in sockets} == {"ormbridge-worker-1"}
    assert stats().holders == ()
    await disconnect(*sockets)


async def threads_of_calls():
    """Return where each kind of call runs: the first words of the names of the threads."""

    def name():
        return threading.current_thread().name.rpartition("_")[0] or "worker"

    calls = {
        "sync_to_async": sync_to_async(name),
        "channels.db": channels_db.database_sync_to_async(name),
        "bridge": database_sync_to_async(name),
    }
    threads = {kind: await call() for kind, call in calls.items()}
    async with pinned():
        threads["block"] = await sync_to_async(name)()
    return threads


@pytest.mark.parametrize("line", [False, True])
async def test_context_with_an_executor(line):
    """With an executor of its own, a context keeps asgiref's calls there, the line or not.

    Calls of the bridge and of its blocks run on workers.
    """
    found = []

    async def application(scope, receive, send):
        async with ThreadSensitiveContext(executor=executor):
            found.append(await threads_of_calls())

    with ThreadPoolExecutor(1, thread_name_prefix="own") as executor:
        wrapped = BridgeMiddleware(application) if line else application
        await wrapped({"type": "websocket", "path": "/"}, None, None)
    assert found == [
        {"sync_to_async": "own", "channels.db": "own", "bridge": "worker", "block": "worker"}
    ]


async def test_each_context_opens_a_connection(ada):
    """Without the middleware each ``ThreadSensitiveContext`` opens a connection of its own.

    Nothing closes it: ``CONN_MAX_AGE`` is not reached, and then the thread has ended.
    """
    opened = []

    def query():
        User.objects.count()
        own = connections["default"]
        own.inc_thread_sharing()  # or this test could not close it
        opened.append(own)

    for _ in range(3):
        async with ThreadSensitiveContext():
            await sync_to_async(query)()
    try:
        assert len({id(own.connection) for own in opened}) == 3
    finally:
        for own in opened:
            own.connection.close()
