"""The page ``guide/scaling``: its router, and the figures of its budget."""

import contextvars
import json
import threading
from pathlib import Path

import pytest
from django.contrib.auth.models import Group, User

from tests.bench.budget import budget
from tests.support.examples import example_source

RESULTS = json.loads(Path("docs/_recorded/stack.json").read_text(encoding="utf-8"))


def test_replicas(run_example, recorded):
    """A router sends reads to the replica, and those that need what was just written do not go."""
    recorded("scaling/replicas", run_example("scaling/replicas"))


@pytest.fixture
def router(settings):
    """Return the part of the example with the router, used for the databases of the tests."""
    source = example_source("scaling/replicas")
    before, _, rest = source.partition("# [router]")
    assert "contextvars" in before
    namespace = {"contextvars": contextvars}
    exec("import contextlib\n" + rest.partition("# [/router]")[0], namespace)

    class Router(namespace["ReplicaRouter"]):
        def db_for_read(self, model, **hints):
            threads.add(threading.current_thread() is threading.main_thread())
            return {"replica": "other"}.get(name := super().db_for_read(model, **hints), name)

    threads = set()
    settings.DATABASE_ROUTERS = [Router()]
    yield namespace["on_primary"]
    assert threads == {True, False}  # the one of the event loop is among them


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
async def test_on_primary_holds_on_every_thread(router):
    """What on_primary() says holds for all ways to read, whichever thread asks the router."""

    async def read():
        group = await Group.objects.afirst()
        found = [
            await User.objects.afirst(),
            *[user async for user in User.objects.all()],
            *[user async for user in User.objects.aiterator()],
            *[user async for user in group.user_set.aiterator()],
            await User.objects.prefetch_related("groups").afirst(),
        ]
        return [each._state.db for each in found]

    # Both aliases of the tests are one database.
    user = await User.objects.acreate(username="ada")
    await user.groups.aadd(await Group.objects.acreate(name="readers"))
    with router():
        assert await read() == ["default"] * 5
    assert await read() == ["other"] * 5


@pytest.mark.parametrize("server", RESULTS["budget"])
@pytest.mark.parametrize("sockets", [1_000, 100_000])
def test_budget_follows_from_the_figures(server, sockets):
    """What the page says that sockets need is computed from what one process did."""
    said = RESULTS["budget"][server]
    one = RESULTS["servers"][server]["1"]["idle"]
    assert said["one"]["messages"] == one["messages"]["median"]
    assert said["one"]["kib"] == one["kib"]
    assert said[str(sockets)] == budget(sockets, said["one"])
