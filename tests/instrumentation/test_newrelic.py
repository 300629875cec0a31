"""New Relic's agent, which puts its own around asgiref before anything else is imported."""

import pytest

SET_UP = """
import os

os.environ["NEW_RELIC_APP_NAME"] = "tests"
os.environ["NEW_RELIC_DEVELOPER_MODE"] = "true"  # it reports to nobody
os.environ["NEW_RELIC_LICENSE_KEY"] = 40 * "x"
os.environ["NEW_RELIC_LOG"] = os.devnull
import newrelic.agent

newrelic.agent.initialize()
newrelic.agent.register_application(timeout=60)
import asyncio, json
from newrelic.api.transaction import current_transaction
from tests.instrumentation.project import *

seen = {}

def note(place, name):
    # The agent names a transaction after its view; here, after the request.
    kept = getattr(current_transaction(), "kept", None)
    seen.setdefault(place, []).append(kept == name)

def look(name):
    query(1, name)
    note("a function", name)

async def aview(request, name):
    from ormbridge import atomic, database_sync_to_async

    current_transaction().kept = name
    note("the view", name)
    await database_sync_to_async(look)(name)
    await database_sync_to_async(look)(name=name)
    await sync_to_async(look)(name)
    async with atomic():
        await database_sync_to_async(look)(name)
        await ContentType.objects.acreate(app_label=name, model=str(os.getpid()))
    return HttpResponse("done")

def view(request, name):
    current_transaction().kept = name
    look(name)
    return HttpResponse("done")

set_up(%s)
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
from django.db.models.signals import pre_save

call_command("migrate", verbosity=0)
pre_save.connect(lambda instance, **_: note("a receiver", instance.app_label), weak=False)
urlpatterns += [path("aview/<name>", aview), path("view/<name>", view)]
traced = newrelic.agent.ASGIApplicationWrapper(application())

async def app(scope, receive, send):
    await traced({"query_string": b"", **scope}, receive, send)

async def main():
    paths = [f"/{('aview', 'view')[n & 1]}/request-{n}" for n in range(20)]
    answers = await asyncio.gather(*[get(app, each) for each in paths])
    found = {place: sorted(set(each)) for place, each in seen.items()}
    print(json.dumps([sorted(set(answers)), found]), flush=True)
    os._exit(0)  # the agent would look for its server

asyncio.run(main())
"""


@pytest.mark.parametrize("green", ["False", "True", "'all'"])
def test_transaction_is_that_of_the_request(run, green):
    """Under New Relic, all that a request runs finds its transaction, on whatever thread."""
    settings = f'ORMBRIDGE={{"MAX_THREADS": WORKERS, "GREEN": {green}}}'
    answers, seen = run(SET_UP % settings)
    assert answers == ["200 done"]
    assert seen == {place: [True] for place in ("the view", "a function", "a receiver")}
