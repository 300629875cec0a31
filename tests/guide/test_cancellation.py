"""The page ``guide/cancellation``: its examples, and the claims it makes."""

import asyncio
import threading

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.core.handlers.asgi import ASGIHandler
from django.db import OperationalError, connection
from django.http import HttpResponse

from ormbridge import BridgeMiddleware, database_sync_to_async, stats
from tests.core.gate import GUARD
from tests.settings import CHOICE, DATABASES
from tests.support.examples import example_source
from tests.support.http import get, request
from tests.support.timeline import Timeline


def test_fix_is_the_import():
    """The programs before and after differ in the import of the bridge, and in nothing else."""
    before, after = (
        set(example_source(f"cancellation/timeout_{when}").splitlines())
        for when in ("before", "after")
    )
    assert before - after == {"from channels.db import database_sync_to_async"}
    assert after - before == {"from ormbridge import database_sync_to_async"}


class Slow:
    """Synchronous middleware that takes its time."""

    async_capable = False

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        Slow.entered.set()
        assert Slow.open.wait(GUARD)
        return self.get_response(request)


@pytest.mark.parametrize("begun", [True, False])
async def test_view_below_synchronous_middleware(serve, begun):
    """A client that leaves cancels the view that has begun; one that begins later goes on."""
    Slow.entered, Slow.open = threading.Event(), threading.Event()
    entered, done = asyncio.Event(), asyncio.Queue()

    async def view(request):
        entered.set()
        try:
            await asyncio.sleep(GUARD if begun else 0)
            done.put_nowait("ended")
        except asyncio.CancelledError:
            done.put_nowait("cancelled")
            raise
        return HttpResponse()

    client = request(serve(view, f"{__name__}.Slow"))
    await client.send_input({"type": "http.request"})
    await asyncio.to_thread(Slow.entered.wait, GUARD)
    if begun:
        Slow.open.set()
        await asyncio.wait_for(entered.wait(), GUARD)
    await client.send_input({"type": "http.disconnect"})
    if begun:
        assert await asyncio.wait_for(done.get(), GUARD) == "cancelled"
    await client.wait(GUARD)
    if not begun:
        Slow.open.set()
        assert await asyncio.wait_for(done.get(), GUARD) == "ended"


if CHOICE == "postgresql":  # nothing is cancelled elsewhere
    SERVER = {
        "PGHOST": DATABASES["default"]["HOST"],
        "PGPORT": DATABASES["default"]["PORT"],
        "PGUSER": DATABASES["default"]["USER"],
        "PGPASSWORD": DATABASES["default"]["PASSWORD"],
    }

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_timeout(run_script, recorded, when):
        """With Channels the query goes on after its timeout, with the bridge it is stopped."""
        output = run_script(example_source(f"cancellation/timeout_{when}"), **SERVER)
        slow = "slow, " if when == "before" else ""
        assert output.splitlines()[-1] == f"ran to their end: first, {slow}next"
        recorded(f"cancellation/timeout_{when}", output)

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_timeout_timeline(
        load_example, monkeypatch, pool_settings, recorded_timeline, when
    ):
        """The next call has the thread when the slow query has ended, or was stopped."""
        pool_settings(MAX_THREADS=1)
        monkeypatch.setattr(LazySettings, "configure", lambda *args, **kwargs: None)
        module = load_example(f"cancellation/timeout_{when}")
        timeline = Timeline()
        timeline.watch(module, "query")
        query = module.query

        async def query_in_its_place(name, seconds):
            with timeline.within(name):
                await query(name, seconds)

        module.query = query_in_its_place
        await asyncio.wait_for(module.main(), GUARD)
        assert [span.where for span in timeline.spans] == ["first", "slow", "next"]
        assert len({span.thread for span in timeline.spans}) == 1
        assert ("slow" in module.ran_to_their_end) is (when == "before")
        recorded_timeline(f"cancellation/timeout_{when}", timeline)

    @pytest.mark.django_db(transaction=True)
    async def test_view(load_example, settings, pool_settings, recorded):
        """A view whose query takes too long answers with an error, from the same worker."""
        pool_settings(MAX_THREADS=1)
        await database_sync_to_async(User.objects.create)(username="ada")
        settings.ROOT_URLCONF = load_example("cancellation/view")
        answer = asyncio.create_task(get(BridgeMiddleware(ASGIHandler()), "/report/"))
        recorded("cancellation/view", await asyncio.wait_for(answer, GUARD))
        assert stats().threads == 1

    def test_transaction(run_script, recorded):
        """Code that swallows the cancellation in a transaction cannot go on in it."""
        output = run_script(example_source("cancellation/transaction"), **SERVER)
        recorded("cancellation/transaction", output)

    def test_statement_timeout(run_script, recorded):
        """A statement that the server stopped in an inner block leaves the outer one whole."""
        output = run_script(example_source("cancellation/statement_timeout"), **SERVER)
        recorded("cancellation/statement_timeout", output)

    @pytest.mark.django_db(transaction=True)
    async def test_network(load_example, connection_settings, recorded):
        """The settings for a network that stalls are those that the connection has."""

        def parameters():
            connection.ensure_connection()
            return connection.connection.info.get_parameters()

        options = load_example("cancellation/network").DATABASES["default"]["OPTIONS"]
        connection_settings(OPTIONS=options)
        known = await database_sync_to_async(parameters)()
        assert {name: known[name] for name in options} == {
            name: str(value) for name, value in options.items()
        }
        recorded("cancellation/network", "\n".join(f"{name}={known[name]}" for name in options))


if CHOICE == "mariadb":

    @pytest.mark.django_db(transaction=True)
    async def test_network_mariadb(load_example, network, connection_settings, recorded):
        """With ``read_timeout`` the worker is free when the network has stalled for as long."""
        options = load_example("cancellation/network_mariadb").DATABASES["default"]["OPTIONS"]
        assert options["read_timeout"] == 30
        connection_settings(OPTIONS={**options, "read_timeout": 1, "connect_timeout": 2})
        count = database_sync_to_async(User.objects.count)
        assert await count() == 0
        network.stall()
        with pytest.raises(OperationalError) as lost:
            await asyncio.wait_for(count(), GUARD)
        with pytest.raises(OperationalError):  # to connect anew takes too long as well
            await asyncio.wait_for(count(), GUARD)
        assert stats().idle == stats().threads
        network.go_on()
        assert await count() == 0
        recorded("cancellation/network_mariadb", f"OperationalError {lost.value.args[0]}")
