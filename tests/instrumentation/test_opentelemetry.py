"""OpenTelemetry, with its instrumentation of Django and psycopg."""

import pytest

SET_UP = """
import asyncio, json, logging, sys
from opentelemetry import trace
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.instrumentation.project import *

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

class Complaints(logging.Handler):
    def emit(self, record):
        raise SystemExit(record.getMessage())

logging.getLogger("opentelemetry").addHandler(Complaints())  # "Failed to detach context"

def spans(kind):
    return [span for span in exporter.get_finished_spans() if span.kind.name == kind]

set_up(%s)
from ormbridge import stats
"""
INSTRUMENT = """
DjangoInstrumentor().instrument()
PsycopgInstrumentor().instrument()
app = application()
"""


@pytest.mark.parametrize("tool", ["alone", "below Sentry"])
def test_view_without_queries_takes_no_worker(run, tool):
    """Under OpenTelemetry, a view without queries takes no worker, and has its span."""
    script = """
    async def main():
        answer = await get(app, "/ping")
        (span,) = spans("SERVER")
        print(json.dumps([answer, stats().threads, span.name, span.attributes["http.status_code"]]))
    asyncio.run(main())
    """
    sentry = """
    import sentry_sdk

    class Lost(sentry_sdk.transport.Transport):
        def capture_envelope(self, envelope):
            pass

    sentry_sdk.init(dsn="http://key@127.0.0.1:9/1", transport=Lost, traces_sample_rate=1.0)
    """
    other = sentry if tool == "below Sentry" else ""
    assert run(SET_UP % "", other, INSTRUMENT, script) == ["200 pong", 0, "GET ping", 200]


def test_health_check_is_answered_while_the_pool_is_full(run):
    """Under OpenTelemetry, a view without queries is answered while every worker is taken."""
    script = """
    print(json.dumps(asyncio.run(while_full(app, "/ping"))))
    """
    assert run(SET_UP % "", INSTRUMENT, script) == "200 pong"


def test_queries_are_those_of_their_request(run, age):
    """The spans of the queries of many requests at once are children of their request's."""
    script = """
    async def main():
        paths = await ask_all(app)
        requests = {s.context.span_id: s.attributes["http.target"] for s in spans("SERVER")}
        found = {path: [] for path in requests.values()}
        for span in spans("CLIENT"):
            if "'part" in span.attributes["db.statement"]:
                found[requests[span.parent.span_id]].append(span.attributes["db.statement"])
        print(json.dumps([found, made(paths)]))
    asyncio.run(main())
    """
    found, made = run(SET_UP % "", INSTRUMENT, script, CONN_MAX_AGE=age)
    assert found == made


def test_span_of_a_view_is_current_in_it(run):
    """In a view, and in what it has run on a worker, the span of its request is current."""
    script = """
    def current():
        return trace.get_current_span().get_span_context().span_id

    async def view(request):
        return HttpResponse(f"{current()} {await sync_to_async(current)()}")

    urlpatterns.append(path("current", view))

    async def main():
        answer = await get(app, "/current")
        (span,) = spans("SERVER")
        print(json.dumps([answer.split()[1:], [str(span.context.span_id)] * 2, current()]))
    asyncio.run(main())
    """
    found, made, afterwards = run(SET_UP % "", INSTRUMENT, script)
    assert found == made
    assert afterwards == 0


def test_view_that_raises(run):
    """A view that raises is a 500 with its span, which says so."""
    script = """
    async def main():
        answer = await get(app, "/fail")
        (span,) = spans("SERVER")
        print(json.dumps([answer[:3], span.status.status_code.name]))
    asyncio.run(main())
    """
    assert run(SET_UP % "", INSTRUMENT, script) == ["500", "ERROR"]


def test_client_that_leaves_cancels_the_view(run):
    """A client that leaves cancels the view, as without OpenTelemetry; the span ends."""
    script = """
    from tests.support.http import request as ask
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def view(request):
        entered.set()
        try:
            await asyncio.sleep(GUARD)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    urlpatterns.append(path("forever", view))

    async def main():
        client = ask(app, "/forever")
        await client.send_input({"type": "http.request"})
        await entered.wait()
        await client.send_input({"type": "http.disconnect"})
        await client.wait(GUARD)
        print(json.dumps([cancelled.is_set(), stats().threads]))
    asyncio.run(main())
    """
    assert run(SET_UP % "", INSTRUMENT, script) == [True, 0]


@pytest.mark.parametrize("hook", ["request_hook", "response_hook"])
def test_hook_may_query(run, hook):
    """With a hook of your own, which may query, a request takes a worker."""
    script = """
    def hook(span, request, response=None):
        query(0, "the hook")

    DjangoInstrumentor().instrument(%s=hook)
    PsycopgInstrumentor().instrument()
    app = application()

    async def main():
        answer = await get(app, "/ping")
        hooked = [span for span in spans("CLIENT") if "the hook" in span.attributes["db.statement"]]
        (request,) = spans("SERVER")
        parents = [span.parent.span_id == request.context.span_id for span in hooked]
        print(json.dumps([answer, stats().threads, parents]))
    asyncio.run(main())
    """
    found = run(SET_UP % "", script % hook)
    assert found == ["200 pong", 1, [True]]


def test_with_other_middleware(run, age):
    """Below and above other middleware, synchronous and asynchronous, queries stay in place."""
    script = """
    async def main():
        paths = await ask_all(app)
        requests = {s.context.span_id: s.attributes["http.target"] for s in spans("SERVER")}
        found = {path: [] for path in requests.values()}
        for span in spans("CLIENT"):
            if "'part" in span.attributes["db.statement"]:
                statement = span.attributes["db.statement"].partition("/*")[0].strip()
                found[requests[span.parent.span_id]].append(statement)
        print(json.dumps([found, made(paths)]))
    asyncio.run(main())
    """
    middleware = [
        "django.middleware.security.SecurityMiddleware",
        "django.middleware.common.CommonMiddleware",
    ]
    # SqlCommenter is synchronous, and about the connections of its thread.
    instrument = INSTRUMENT.replace("instrument()", "instrument(is_sql_commentor_enabled=True)", 1)
    set_up = SET_UP % f"MIDDLEWARE={middleware}" + instrument
    found, made = run(set_up, script, CONN_MAX_AGE=age)
    assert found == made


def test_without_the_extra_nothing_is_traced(run):
    """Without its instrumentation of ASGI, that of Django traces no request to an ASGI server."""
    missing = """
    import sys
    sys.modules["opentelemetry.instrumentation.asgi"] = None  # as if it were not installed
    """
    script = """
    async def main():
        print(json.dumps([await get(app, "/ping"), len(spans("SERVER"))]))
    asyncio.run(main())
    """
    assert run(missing, SET_UP % "", INSTRUMENT, script) == ["200 pong", 0]


def test_spans_end_on_the_thread_of_the_loop(run):
    """Without a hook, the span of a request ends on the event loop's thread."""
    script = """
    import threading
    from opentelemetry.sdk.trace import SpanProcessor

    class Threads(SpanProcessor):
        def on_end(self, span):
            print(json.dumps([span.name, threading.current_thread().name]))

    provider.add_span_processor(Threads())
    asyncio.run(get(app, "/ping"))
    """
    assert run(SET_UP % "", INSTRUMENT, script) == ["GET ping", "MainThread"]


def test_span_of_a_generator_that_another_task_closes(run):
    """A span around a ``yield`` cannot be detached where another task closes the generator."""
    script = """
    class Kept(logging.Handler):
        def emit(self, record):
            kept.append([record.getMessage(), str(record.exc_info[1]).partition(" was ")[2]])

    kept = []
    logging.getLogger("opentelemetry").handlers = [Kept()]

    async def names():
        with trace.get_tracer("shop").start_as_current_span("names"):
            yield "ada"

    async def main():
        generator = names()
        await anext(generator)
        await asyncio.create_task(generator.aclose())
        print(json.dumps(kept))
    asyncio.run(main())
    """
    said = [["Failed to detach context", "created in a different Context"]]
    assert run(SET_UP % "", script) == said
