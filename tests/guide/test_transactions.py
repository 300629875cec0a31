"""The page ``guide/transactions``: its examples, and the claims it makes."""

import ast
import asyncio
import contextlib
import contextvars
import re
import threading

import pytest
from anyio import to_thread
from asgiref.sync import sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import LazySettings
from django.contrib.auth.models import Group, User
from django.core.handlers.asgi import ASGIHandler
from django.db import connection, connections, transaction
from django.db.models.signals import post_init
from django.urls import path

from ormbridge import (
    BridgeMiddleware,
    atomic,
    database_sync_to_async,
    pinned,
    stats,
)
from tests.core.gate import GUARD
from tests.core.support import until
from tests.settings import CHOICE
from tests.support.examples import example_source
from tests.support.http import connect, disconnect, get, say
from tests.support.timeline import Timeline

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])


class UndoError(Exception):
    """What a transaction fails with, so that it is rolled back."""


# Outside of blocks, Django's a-methods use asgiref's thread, and nobody closes its connection.
STRICT = ("-W", "error", "-W", "ignore::ResourceWarning")


@pytest.fixture
def serve(settings):
    """Return a function that serves *view*, or a URLconf, under the middleware."""

    def make(view):
        settings.ROOT_URLCONF = (path("", view),) if callable(view) else view
        settings.MIDDLEWARE = []
        return BridgeMiddleware(ASGIHandler())

    return make


def names():
    return list(User.objects.order_by("pk").values_list("username", flat=True))


committed = database_sync_to_async(names)


def create(name):
    User.objects.create(username=name)


def is_inside():
    """Say whether the calling thread's connection is in an atomic block."""
    return connection.in_atomic_block


def get_thread_name():
    return threading.current_thread().name


async def call_outside(function, *args):
    """Run *function* on a worker, from outside of every block."""
    call = database_sync_to_async(function)(*args)
    return await asyncio.create_task(call, context=contextvars.Context())


# The examples, in the order of the page.


async def test_sign_up(serve, load_example, recorded):
    """A view's block keeps all that is written in it, or nothing."""
    application = serve(load_example("transactions/sign_up"))
    answer = await get(application, "/sign-up/ada/")
    assert await committed() == ["ada"]
    await call_outside(lambda: Group.objects.create(name="team of bob"))
    assert (await get(application, "/sign-up/bob/"))[:3] == "500"  # that name is taken
    assert await committed() == ["ada"]
    recorded("transactions/sign_up", answer)


def test_stock(run_example, recorded):
    """Django's own ``atomic`` refuses ``async with``, and async code around ``with``."""
    output = run_example("transactions/stock", *STRICT)
    # Newer releases of Python say more.
    recorded("transactions/stock", re.sub(r"(manager protocol).*", r"\1", output))


def test_transfer(run_example, recorded):
    """Transfers made at once come one after the other; those that fail leave nothing."""
    recorded("transactions/transfer", run_example("transactions/transfer", *STRICT))


@pytest.mark.parametrize("when", ["before", "after"])
def test_caught(run_example, recorded, when):
    """An error that is caught inside the block costs all of it; caught around an inner one, not."""
    output = run_example(f"transactions/caught_{when}", *STRICT)
    assert output.splitlines()[-1] == ("orders: []" if when == "before" else "orders: ['a pen']")
    recorded(f"transactions/caught_{when}", output)


if CHOICE != "sqlite":  # which locks no rows

    async def test_retry(load_example, capsys, recorded):
        """Of two blocks that lock each other out, one begins again, and both are done."""
        module = load_example("transactions/retry")
        for name in ("ada", "bob"):
            await database_sync_to_async(User.objects.create)(username=name)
        both_wait, left = asyncio.Barrier(2), [1, 2]

        async def ask_another_service():
            if left:
                left.pop()
                await both_wait.wait()  # both have their first row by then

        marry, attempts, one_is_done = module.marry, [], asyncio.Event()

        async def marry_in_turn(*who):
            attempts.append(who)
            if len(attempts) > 2:  # who begins again may overtake who was waiting for the row
                await one_is_done.wait()
            await marry(*who)
            one_is_done.set()

        module.ask_another_service, module.marry = ask_another_service, marry_in_turn
        async with asyncio.timeout(GUARD):
            await asyncio.gather(
                module.marry_with_retry("ada", "bob", "one"),
                module.marry_with_retry("bob", "ada", "two"),
            )
        again = capsys.readouterr().out
        assert again in ("ada and bob: again\n", "bob and ada: again\n")
        last_names = database_sync_to_async(lambda: {each.last_name for each in User.objects.all()})
        assert await last_names() in ({"one"}, {"two"})
        recorded("transactions/retry", again.replace("bob and ada", "ada and bob"))


def test_several(run_example, recorded):
    """Blocks on two databases are kept together, or rolled back together where code fails."""
    recorded("transactions/several", run_example("transactions/several", *STRICT))


def test_on_commit_before(run_example, recorded):
    """On other threads ``on_commit`` runs at once, and what an async function has to do is lost."""
    output = run_example("transactions/on_commit_before", "-u", "-W", "ignore::ResourceWarning")
    recorded("transactions/on_commit_before", re.sub(r"(base\.py):\d+", r"\1", output))


def test_on_commit_after(run_example, recorded):
    """Plain functions run after the commit, and then async ones are awaited on the loop."""
    recorded("transactions/on_commit_after", run_example("transactions/on_commit_after", *STRICT))


def test_timeout(run_example, recorded):
    """A block that times out leaves nothing."""
    recorded("transactions/timeout", run_example("transactions/timeout", *STRICT))


PAIRS = ["transactions/lost", "transactions/gather", "transactions/straggler"]


@pytest.mark.parametrize("way", ["before", "after"])
def test_lost(run_example, recorded, way):
    """With the recipe, another task's row goes with the rollback; with ``atomic`` it stays."""
    name = f"transactions/lost_{way}"
    recorded(name, run_example(name, *STRICT))


@pytest.mark.parametrize("way", ["before", "after"])
def test_gather(run_example, recorded, way):
    """With the recipe, a gathered block that fails takes the other's rows; ``atomic`` does not."""
    name = f"transactions/gather_{way}"
    recorded(name, run_example(name, *STRICT))


@pytest.mark.parametrize("way", ["before", "after"])
def test_straggler(run_example, recorded, way):
    """A task that outlives the recipe's block writes outside of it; with ``atomic`` it raises."""
    name = f"transactions/straggler_{way}"
    recorded(name, run_example(name, *STRICT))


@pytest.mark.parametrize("name", PAIRS)
def test_fix_is_the_block(name):
    """The program before and the program after differ in where the block comes from alone."""
    before, after = (ast.parse(example_source(f"{name}_{way}")) for way in ("before", "after"))
    assert ast.dump(before) != ast.dump(after)
    assert ast.dump(WithoutRecipe().visit(before)) == ast.dump(WithoutRecipe().visit(after))


class WithoutRecipe(ast.NodeTransformer):
    """Takes the recipe and the imports of what the blocks are made of out of a module."""

    def visit_ClassDef(self, node):
        return None if node.name == "AsyncAtomic" else node

    def visit_ImportFrom(self, node):
        return None if node.module in ("ormbridge", "asgiref.sync", "django.db") else node

    def visit_Name(self, node):
        node.id = {"AsyncAtomic": "atomic"}.get(node.id, node.id)
        return node


@pytest.mark.parametrize("way", ["before", "after"])
async def test_gather_timeline(load_example, monkeypatch, recorded_timeline, way):
    """Two gathered blocks interleave with the recipe; with ``atomic`` one waits for the other."""
    monkeypatch.setattr(LazySettings, "configure", lambda *args, **kwargs: None)
    module = load_example(f"transactions/gather_{way}")
    timeline = Timeline()
    timeline.watch(module, "insert")
    sign_up = module.sign_up

    async def sign_up_in_its_place(name):
        with timeline.within(name):
            await sign_up(name)

    module.sign_up = sign_up_in_its_place
    await module.main()
    order = [span.where for span in timeline.spans]
    assert order == {"before": ["eve", "ada"] * 2, "after": ["eve"] * 2 + ["ada"] * 2}[way]
    recorded_timeline(f"transactions/gather_{way}", timeline)


def test_parallel(run_example, recorded):
    """A call with ``thread_sensitive=False`` in the recipe's block writes outside of it."""
    recorded("transactions/parallel_before", run_example("transactions/parallel_before", *STRICT))


def test_tasks(run_example, recorded):
    """What the tasks of a group do in a block is kept together, or rolled back together."""
    recorded("transactions/tasks", run_example("transactions/tasks", *STRICT))


def test_neighbour(run_example, recorded):
    """Waiting in a block for a call beside it ends in an error that names the block."""
    output = run_example("transactions/neighbour", *STRICT)
    # A busy machine waits a little longer than TIMEOUT, and says so.
    recorded("transactions/neighbour", re.sub(r"\d+\.\d s", "0.5 s", output))


def test_generator(run_example, recorded):
    """A block in an async generator is refused."""
    recorded("transactions/generator", run_example("transactions/generator", *STRICT))


def test_pinned(run_example, recorded):
    """Temporary tables that two tasks make at once are there for their own calls alone."""
    recorded("transactions/pinned", run_example("transactions/pinned", *STRICT))


async def test_jobs_in_pinned(connection_settings):
    """All calls of a job run on one worker and one connection, also at ``CONN_MAX_AGE = 0``."""
    connection_settings(CONN_MAX_AGE=0)
    all_have_begun = asyncio.Barrier(3)
    threads = {}

    def note_thread(instance, **kwargs):
        threads.setdefault(instance.username, []).append(get_thread_name())

    def get_open_connection():
        connection.ensure_connection()
        return connection.connection

    async def work(name):
        async with pinned():
            before = await database_sync_to_async(get_open_connection)()
            await all_have_begun.wait()
            await User.objects.acreate(username=name)
            await User.objects.aget(username=name)
            assert [user.username async for user in User.objects.filter(username=name)] == [name]
            assert await database_sync_to_async(get_open_connection)() is before
            return await database_sync_to_async(get_thread_name)()

    names = ["ada", "bob", "cyd"]
    post_init.connect(note_thread, sender=User)
    try:
        workers = await asyncio.gather(*map(work, names))
    finally:
        post_init.disconnect(note_thread, sender=User)
    assert len(set(workers)) == 3
    calls = {name: threads[name][1:] for name in names}  # acreate() makes its object on the loop
    assert calls == {name: [worker] * 2 for name, worker in zip(names, workers, strict=True)}


if CHOICE == "postgresql":

    async def test_advisory_lock(serve, load_example, pool_settings, recorded):
        """An advisory lock is held from the call that takes it to the call that lets it go."""
        pool_settings(MAX_THREADS=3)
        module = load_example("transactions/advisory_lock")
        inside, most = 0, 0

        class Asyncio:
            @staticmethod
            async def sleep(seconds):
                nonlocal inside, most
                inside, most = inside + 1, max(most, inside + 1)
                await asyncio.sleep(seconds)
                inside -= 1

        module.asyncio = Asyncio
        application = serve(module)
        answers = await asyncio.gather(*[get(application, "/report/") for _ in range(3)])
        assert most == 1
        recorded("transactions/advisory_lock", "\n".join(answers))


async def test_calls_gathered_in_the_recipe(load_example, monkeypatch):
    """Plain calls that the recipe's block gathers run in its transaction."""
    monkeypatch.setattr(LazySettings, "configure", lambda *args, **kwargs: None)
    async with load_example("transactions/lost_before").AsyncAtomic():
        calls = [sync_to_async(is_inside)() for _ in range(3)]
        assert await asyncio.gather(*calls) == [True] * 3


# What is inside, and what is not.


@pytest.mark.parametrize(
    "call",
    [
        asyncio.to_thread,
        lambda func: sync_to_async(func, thread_sensitive=False)(),
        lambda func: database_sync_to_async(func, thread_sensitive=False)(),
    ],
    ids=["to_thread", "sync_to_async", "bridge"],
)
async def test_other_threads_are_outside(call):
    """``asyncio.to_thread`` and ``thread_sensitive=False`` do not join the transaction."""

    def look():
        return connection.in_atomic_block, get_thread_name()

    async with atomic():
        inside, own = await database_sync_to_async(look)()
        assert inside
        inside, other = await call(look)
        assert not inside
        assert other != own


async def test_decorated_view(serve):
    """An async view that is decorated is one transaction."""

    @atomic
    async def view(request):
        await User.objects.acreate(username="ada")
        raise UndoError

    assert (await get(serve(view)))[:3] == "500"
    assert await committed() == []


async def test_consumer():
    """A consumer needs no middleware for a block."""

    class Consumer(AsyncWebsocketConsumer):
        async def receive(self, text_data):
            async with atomic():
                await User.objects.acreate(username=text_data)
                await self.send(text_data=str(await sync_to_async(is_inside)()))

    socket = await connect(Consumer.as_asgi())
    assert await say(socket, "ada") == "True"
    await disconnect(socket)
    assert await committed() == ["ada"]


@contextlib.asynccontextmanager
async def synchronous_dependency():
    """Open a transaction as FastAPI does for a synchronous dependency: on threads of anyio."""

    @contextlib.contextmanager
    def dependency():
        with transaction.atomic():
            yield

    manager = dependency()
    await to_thread.run_sync(manager.__enter__)
    try:
        yield
    except BaseException as error:
        await to_thread.run_sync(manager.__exit__, type(error), error, error.__traceback__)
        raise
    else:
        await to_thread.run_sync(manager.__exit__, None, None, None)


@contextlib.asynccontextmanager
async def asynchronous_dependency():
    async with atomic():
        yield


async def run_on_worker(function, *args):
    return await database_sync_to_async(function)(*args)


@pytest.mark.parametrize(
    ("dependency", "call", "saved"),
    [
        (synchronous_dependency, to_thread.run_sync, []),
        (asynchronous_dependency, run_on_worker, ["ada"]),
    ],
    ids=["sync", "async"],
)
async def test_dependency_of_fastapi(connection_settings, dependency, call, saved):
    """A request that fails undoes what another wrote, if their blocks are in sync dependencies."""
    if CHOICE == "sqlite":  # take the lock with the first statement that writes, not with BEGIN
        options = connections.settings["default"]["OPTIONS"]
        connection_settings(OPTIONS={**options, "transaction_mode": "DEFERRED"})
    has_written, has_begun, is_answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def write():
        async with dependency():
            await call(create, "ada")
            has_written.set()
            await has_begun.wait()
        is_answered.set()

    async def fail():
        await has_written.wait()
        async with dependency():
            await call(is_inside)
            has_begun.set()
            await is_answered.wait()
            raise UndoError

    async with asyncio.timeout(GUARD):
        result = await asyncio.gather(write(), fail(), return_exceptions=True)
    await to_thread.run_sync(lambda: connection.close())  # that of the thread
    assert [type(each) for each in result] == [type(None), UndoError]
    assert await committed() == saved


async def test_one_call_needs_no_block():
    """Django's own ``atomic`` in a function that the bridge runs is one transaction."""

    @database_sync_to_async
    @transaction.atomic
    def sign_up():
        create("ada")
        raise UndoError

    with pytest.raises(UndoError):
        await sign_up()
    assert await committed() == []


if CHOICE != "sqlite":

    async def test_select_for_update_needs_a_block():
        """Outside of a block Django refuses ``select_for_update``."""
        with pytest.raises(
            transaction.TransactionManagementError,
            match="select_for_update cannot be used outside of a transaction",
        ):
            await User.objects.select_for_update().afirst()


cleared = []


def clear(connection):
    cleared.append(connection.alias)


async def test_reset_clears_what_a_block_left(pool_settings):
    """``RESET`` runs as the block gives its worker back."""
    pool_settings(RESET=f"{__name__}.clear")
    cleared.clear()
    async with pinned():
        await User.objects.acount()
        await User.objects.acount()
        assert cleared == []
    await until(lambda: stats().idle == stats().threads)
    assert cleared == ["default"]
