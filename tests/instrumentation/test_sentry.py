"""Sentry, with its integrations for Django, logging and threads."""

import pytest

SET_UP = """
import asyncio, json
import sentry_sdk
from sentry_sdk.integrations.django import DjangoIntegration
from sentry_sdk.integrations.logging import LoggingIntegration
from sentry_sdk.transport import Transport
from tests.instrumentation.project import *

events = []

class Kept(Transport):
    def capture_envelope(self, envelope):
        for item in envelope.items:
            if item.type in ("event", "transaction"):
                events.append(item.payload.json)

sentry_sdk.init(
    dsn="http://key@127.0.0.1:9/1",
    transport=Kept,
    traces_sample_rate=1.0,
    send_default_pii=True,
    integrations=[
        DjangoIntegration(%s),
        LoggingIntegration(event_level="WARNING"),
    ],
)
set_up()
app = application()
from ormbridge import stats
"""

OPTIONS = {
    "defaults": "",
    "everything": "middleware_spans=True, signals_spans=True, cache_spans=True, "
    "db_transaction_spans=True",
    "no signals": "signals_spans=False",
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_view_without_queries_takes_no_worker(run, options):
    """Under Sentry, a view without queries takes no worker, and its signals have their spans."""
    script = """
    async def main():
        answer = await get(app, "/ping")
        (transaction,) = [event for event in events if event.get("type") == "transaction"]
        spans = [span["description"] for span in transaction["spans"]]
        signals = [span for span in spans if "django.db" in span]
        print(json.dumps([answer, stats().threads, signals]))
    asyncio.run(main())
    """
    spans = [
        "django.db.reset_queries",
        "django.db.close_old_connections",
        "django.db.close_old_connections",
    ]
    expected = [] if "signals_spans=False" in options else spans
    assert run(SET_UP % options, script) == ["200 pong", 0, expected]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_health_check_is_answered_while_the_pool_is_full(run, options):
    """Under Sentry, a view without queries is answered while every worker is taken."""
    script = """
    print(json.dumps(asyncio.run(while_full(app, "/ping"))))
    """
    assert run(SET_UP % options, script) == "200 pong"


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_queries_are_those_of_their_request(run, options, age):
    """Each of many requests at once has its own queries in its transaction, and no others."""
    script = """
    def queries(event):
        spans = [span["description"] for span in event["spans"] if span["op"] == "db"]
        return [span for span in spans if span.startswith("SELECT 'part")]

    async def main():
        paths = await ask_all(app)
        urls = [event["request"]["url"].partition("localhost")[2] for event in events]
        print(json.dumps([dict(zip(urls, map(queries, events))), made(paths)]))
    asyncio.run(main())
    """
    found, made = run(SET_UP % options, script, CONN_MAX_AGE=age)
    assert found == made


def test_what_a_worker_logs_is_of_no_other_request(run):
    """What a worker logs between requests is not reported as of the request that started it."""
    script = """
    def begin():
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")

    async def leave(request):
        await sync_to_async(begin)()
        return HttpResponse("left")

    urlpatterns.append(path("leave", leave))

    async def main():
        await get(app, "/async/first")  # its call starts the worker
        await get(app, "/leave")  # the same worker rolls back, and logs it
        logged = lambda: [event for event in events if "logentry" in event]
        await until(logged)
        (event,) = logged()
        message = event["logentry"]["message"]
        print(json.dumps([message, event.get("transaction"), event.get("request")]))
    asyncio.run(main())
    """
    expected = ["connection %r discarded: %s", None, None]
    assert run(SET_UP % "", script) == expected
