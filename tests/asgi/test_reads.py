"""Reads of Django's in a request: what leaves nothing behind gives its worker back."""

import asyncio
import contextlib

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Permission, User
from django.db.models import Count, Prefetch, QuerySet
from django.db.models.functions import Length
from django.db.models.signals import post_init
from django.http import HttpResponse

from ormbridge import BridgeMiddleware, atomic, database_sync_to_async, pinned, stats
from tests.core.gate import GUARD
from tests.core.support import leased, thread_name, until
from tests.support.http import connect, get, say

pytestmark = pytest.mark.django_db(transaction=True)


class Watched(QuerySet):
    """Rows of a package that does something of its own before each query."""

    def _fetch_all(self):
        super()._fetch_all()


class Chained(QuerySet):
    """Rows with a filter of one's own, as most projects have them."""

    def active(self):
        return self.filter(is_active=True)


@pytest.fixture
def answer(serve):
    """Return a function that serves what a coroutine function returns, and says what it was."""

    async def answer(asks):
        async def view(request):
            return HttpResponse(str(await asks()))

        return (await get(serve(view))).removeprefix("200 ")

    return answer


@pytest.fixture
def ada():
    """Save a user for all tests; a thread of the pool has her."""
    return User.objects.create(username="ada")


@pytest.fixture
def as_a_user_is_read():
    """Return a function: what it is given is called on the worker for each user that is read."""
    with contextlib.ExitStack() as stack:

        def connect_to(receiver):
            post_init.connect(receiver, sender=User, weak=False)
            stack.callback(post_init.disconnect, receiver, sender=User)

        yield connect_to


async def iterate():
    """Read all users, each with her permissions."""
    return [user async for user in User.objects.prefetch_related("user_permissions")]


READS = {
    "acontains": lambda: User.objects.acontains(User(pk=1)),
    "acount": lambda: User.objects.acount(),
    "aearliest": lambda: User.objects.aearliest("date_joined"),
    "aexists": lambda: User.objects.aexists(),
    "aexplain": lambda: User.objects.all().aexplain(),
    "afirst": lambda: User.objects.afirst(),
    "aget": lambda: User.objects.aget(username="ada"),
    "ain_bulk": lambda: User.objects.ain_bulk(),
    "alast": lambda: User.objects.order_by("pk").alast(),
    "alatest": lambda: User.objects.alatest("date_joined"),
    "async for": iterate,
    "chained": lambda: Chained(User).active().afirst(),
    "related": lambda: Permission.objects.filter(user__username="ada").aexists(),
    "bridge": lambda: database_sync_to_async(User.objects.all().first)(),
}
PERMISSIONS = Prefetch("user_permissions", Permission.objects.annotate(number=Count("pk")))
OTHERS = {
    "a function": lambda: database_sync_to_async(thread_name)(),
    "asave": lambda: User(username="eve").asave(),
    "aupdate": lambda: User.objects.aupdate(is_staff=True),
    # It may call functions of the server: set_config(), pg_advisory_lock().
    "annotated": lambda: User.objects.annotate(number=Count("pk")).afirst(),
    "aaggregate": lambda: User.objects.aaggregate(Count("pk")),
    "ordered": lambda: User.objects.order_by(Length("username")).afirst(),
    "extra": lambda: User.objects.extra(select={"one": "1"}).afirst(),
    "prefetched": lambda: User.objects.prefetch_related(PERMISSIONS).afirst(),
    "watched": lambda: Watched(User).afirst(),
}


@pytest.mark.parametrize("read", READS)
async def test_read_gives_its_worker_back(answer, ada, read):
    """While a request has done nothing but read, it holds no worker between its calls."""

    async def asks():
        await READS[read]()
        return leased()

    assert await answer(asks) == "0"
    assert stats().threads == 1


@pytest.mark.parametrize("call", OTHERS)
async def test_what_may_leave_something_holds_its_worker(answer, ada, call):
    """Anything but such a read begins a lease that is held."""

    async def asks():
        await OTHERS[call]()
        return leased()

    assert await answer(asks) == "1"


@pytest.mark.parametrize(
    "change",
    [
        {"HTTP_LEASE": "request"},
        {"RESET": "tests.core.support.thread_name"},
        {"CONN_MAX_AGE": 0},
        {"AUTOCOMMIT": False},
        {"ENGINE": "django_tenants.postgresql_backend"},
    ],
    ids=lambda change: next(iter(change)),
)
async def test_read_holds_its_worker(answer, ada, pool_settings, connection_settings, change):
    """Where a connection ends with its lease, or a read may leave state, a read holds it."""
    if change.keys() <= {"AUTOCOMMIT", "CONN_MAX_AGE", "ENGINE"}:
        connection_settings("other", **change)
    else:
        pool_settings(**change)

    async def asks():
        await User.objects.afirst()
        return leased()

    assert await answer(asks) == "1"


async def test_read_after_another_call_runs_where_that_did(answer, ada, as_a_user_is_read):
    """From the first call that may leave something on, reads run on the worker that is held."""
    threads = []

    def note(**kwargs):
        threads.append(thread_name())

    async def asks():
        await User.objects.afirst()
        own = await sync_to_async(thread_name)()
        await asyncio.gather(*(User.objects.afirst() for _ in range(3)))
        return own, leased()

    as_a_user_is_read(note)
    assert await answer(asks) == str(("ormbridge-worker-1", 1))
    assert threads == ["ormbridge-worker-1"] * 4


@pytest.mark.parametrize("block", [atomic, pinned])
async def test_read_in_a_block_keeps_the_worker_of_the_block(answer, ada, block):
    """A block has one worker, whatever it calls."""

    async def asks():
        async with block():
            await User.objects.afirst()
            return leased()

    assert await answer(asks) == "1"


async def test_reads_of_a_request_run_at_the_same_time(answer, ada, gate, as_a_user_is_read):
    """Two reads in a gather() have a worker each."""

    def note(**kwargs):
        gate()

    async def asks():
        reads = asyncio.gather(User.objects.afirst(), User.objects.afirst())
        await gate.entered(2)
        gate.open.set()
        await reads
        return len(set(gate.threads))

    as_a_user_is_read(note)
    assert await answer(asks) == "2"


async def test_read_of_a_socket_that_holds_its_worker(pool_settings, ada):
    """With WEBSOCKET_LEASE = "connection" a read holds the worker like any other call."""
    pool_settings(WEBSOCKET_LEASE="connection")

    async def reads(scope, receive, send):
        await receive()
        await User.objects.afirst()
        await send({"type": "websocket.accept"})
        await receive()
        await send({"type": "websocket.send", "text": str(leased())})
        await receive()

    assert await say(await connect(BridgeMiddleware(reads))) == "1"


async def test_read_that_waits_in_vain_is_a_503(answer, ada, gate, pool_settings):
    """Where no worker becomes free for a read, the server is busy; the error page does not wait."""
    pool_settings(MAX_THREADS=1, TIMEOUT=1e-3)
    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    assert (await answer(User.objects.afirst)).startswith("503")
    assert stats().queued == 1
    gate.open.set()
    await holder


async def test_read_without_a_thread_is_a_503(answer, ada, refuse):
    """So it is where the system starts no thread."""
    refuse()
    assert (await answer(User.objects.afirst)).startswith("503")


async def test_read_names_its_request(answer, ada, as_a_user_is_read):
    """Who waits in vain is told which request reads, and what."""
    named = []

    def note(**kwargs):
        named.extend(name for _, name, _ in stats().holders)

    as_a_user_is_read(note)
    await answer(User.objects.afirst)
    assert named == ["GET /, in django.db.models.query.QuerySet.first"]


async def test_reads_in_line_do_not_wait_for_their_own_request(answer, ada, gate, pool_settings):
    """What a request holds a worker for is behind its reads in the line, or they go there."""
    pool_settings(MAX_THREADS=1, TIMEOUT=GUARD)

    async def asks():
        calls = User.objects.afirst(), sync_to_async(thread_name)(), User.objects.afirst()
        return (await asyncio.gather(*calls))[1]

    holder = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    requests = [asyncio.create_task(answer(asks)) for _ in range(3)]
    await until(lambda: stats().waiting == 6)
    gate.open.set()
    assert await asyncio.gather(holder, *requests) == ["ormbridge-worker-1"] * 4


async def test_block_that_begins_with_a_read_splits_no_request(
    answer, ada, gate, as_a_user_is_read
):
    """What a neighbour of the block sets meanwhile is there in the request's next call."""

    async def asks():
        async def in_a_block():
            async with pinned():
                await User.objects.afirst()
                await leave.wait()

        leave = asyncio.Event()
        block = asyncio.create_task(in_a_block())
        await gate.entered()
        setting = asyncio.create_task(sync_to_async(thread_name)())
        await asyncio.sleep(0)
        gate.open.set()
        threads = {await setting, await sync_to_async(thread_name)()}
        leave.set()
        await block
        return len({*threads, await sync_to_async(thread_name)()})

    as_a_user_is_read(lambda **kwargs: gate())
    assert await answer(asks) == "1"
