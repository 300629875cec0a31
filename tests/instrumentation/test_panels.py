"""django-debug-toolbar and django-silk, which look at the connections and at the thread."""

import pytest

from tests.instrumentation.test_sentry import unindented

TOOLBAR = """
import asyncio, json
from tests.instrumentation.project import *

def show_toolbar(request):
    return "hidden" not in request.path

set_up(
    DEBUG=True,
    ORMBRIDGE={"MAX_THREADS": WORKERS, %s},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.staticfiles", "debug_toolbar"],
    STATIC_URL="static/",
    MIDDLEWARE=["debug_toolbar.middleware.DebugToolbarMiddleware"],
    DEBUG_TOOLBAR_CONFIG={
        "SHOW_TOOLBAR_CALLBACK": show_toolbar,
        "RESULTS_CACHE_SIZE": 2 * REQUESTS,
        "DISABLE_PANELS": {"debug_toolbar.panels.profiling.ProfilingPanel"},
    },
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
)
from debug_toolbar.toolbar import debug_toolbar_urls
from debug_toolbar.store import get_store
urlpatterns += debug_toolbar_urls()
app = application()
from ormbridge import stats

def panels():
    found = {}
    store = get_store()
    for request in store.request_ids():
        path = store.panel(request, "HistoryPanel")["request_url"]
        queries = store.panel(request, "SQLPanel")["queries"]
        found[path] = [each["raw_sql"] for each in queries if "'part" in each["raw_sql"]]
    return found
"""

SILK = """
import asyncio, json
from tests.instrumentation.project import *
set_up(
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions", "silk"],
    MIDDLEWARE=["silk.middleware.SilkyMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    %s
)
from django.core.management import call_command
from django.urls import include
urlpatterns.append(path("silk/", include("silk.urls", namespace="silk")))
call_command("migrate", verbosity=0)
connection.close()
app = application()
"""


def test_toolbar_shows_the_queries_of_its_request(run, age):
    """With a worker for each request, the SQL panel has its queries, and no others."""
    script = """
    async def main():
        paths = await ask_all(app)
        print(json.dumps([panels(), made(paths)]))
    asyncio.run(main())
    """
    found, made = run(TOOLBAR % "" + unindented(script), CONN_MAX_AGE=age)
    assert found == made


def test_toolbar_does_not_show_those_of_others(run, age):
    """What runs on the worker once the request has given it back is not in its panel."""
    script = """
    from ormbridge import release

    async def first(request):
        await sync_to_async(query)(1, "first")
        await release()
        await others.wait()
        return HttpResponse("<body>first</body>")

    async def hidden(request):
        await sync_to_async(query)(1, "hidden")
        return HttpResponse("<body>hidden</body>")

    urlpatterns.extend([path("first", first), path("hidden", hidden)])

    async def main():
        global others
        others = asyncio.Event()
        asked = asyncio.create_task(get(app, "/first"))
        await until(lambda: stats().calls == 3 and stats().idle == 1)
        await get(app, "/hidden")  # on the same worker
        others.set()
        await asked
        print(json.dumps(panels()))
    asyncio.run(main())
    """
    found = run(TOOLBAR % "" + unindented(script), CONN_MAX_AGE=age)
    assert found == {"/first": ["SELECT 'part 1 of first'"]}


def test_toolbar_with_a_worker_for_each_call(run):
    """With HTTP_LEASE = "call", the SQL panel of a request lacks queries of its own."""
    script = """
    async def main():
        paths = [path for path in await ask_all(app) if path.startswith("/async")]
        found, expected = panels(), made(paths)
        print(json.dumps(sum(found[path] != expected[path] for path in paths)))
    asyncio.run(main())
    """
    assert run(TOOLBAR % "'HTTP_LEASE': 'call'" + unindented(script)) > 0


def test_silk_keeps_the_queries_of_its_request(run, age):
    """Silk keeps the queries of each of many requests at once, and no others."""
    script = """
    from silk.models import Request

    def kept():
        found = {}
        for request in Request.objects.exclude(path="/nobody").order_by("path"):
            queries = request.queries.order_by("start_time")
            found[request.path] = [each.query.partition(" WHERE")[0][-12:] for each in queries]
        return found
    """
    assert True
