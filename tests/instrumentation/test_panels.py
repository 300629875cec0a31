"""django-debug-toolbar and django-silk, which look at the connections and at the thread."""

import pytest

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
    INSTALLED_APPS=[f"django.contrib.{app}" for app in ("contenttypes", "auth", "sessions")]
    + ["silk"],
    MIDDLEWARE=["silk.middleware.SilkyMiddleware"],
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    ORMBRIDGE={"MAX_THREADS": WORKERS, "HTTP_LEASE": "%s"},
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
    found, made = run(TOOLBAR % "", script, CONN_MAX_AGE=age)
    assert found == made


# Of the worker that the first request gave back.
RELEASE = """
from ormbridge import release

others = asyncio.Event()

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
    asked = asyncio.create_task(get(app, "/first"))
    await until(lambda: stats().calls == 3 and stats().idle == 1)
    await get(app, "/hidden")  # on the same worker
    others.set()
    await asked
    print(json.dumps(panels()))

asyncio.run(main())
"""


def forget_the_panel(connection):
    """Have the toolbar record nothing more on *connection*: what RESET names."""
    connection._djdt_logger = None


def test_reset_keeps_the_toolbar_to_its_request(run, age):
    """With a RESET for it, the panel has nothing that runs after the request's release()."""
    reset = f"'RESET': '{__name__}.{forget_the_panel.__name__}'"
    found = run(TOOLBAR % reset, RELEASE, CONN_MAX_AGE=age)
    assert found == {"/first": ["SELECT 'part 1 of first'"]}


def test_toolbar_after_release(run):
    """Without one it also has what others run there."""
    assert run(TOOLBAR % "", RELEASE) == {
        "/first": ["SELECT 'part 1 of first'", "SELECT 'part 1 of hidden'"]
    }


def test_toolbar_with_a_worker_for_each_call(run):
    """With HTTP_LEASE = "call", the SQL panel of a request lacks queries of its own."""
    script = """
    import threading

    together = threading.Barrier(WORKERS, timeout=GUARD)

    async def side_by_side(request):
        # All of them run at once, each on another worker; one of these at most is the panel's.
        await asyncio.gather(*[sync_to_async(at_once)(part) for part in range(WORKERS)])
        return HttpResponse("<body></body>")

    def at_once(part):
        together.wait()
        query(part, "call")

    urlpatterns.append(path("call", side_by_side))

    async def main():
        await get(app, "/call")
        print(json.dumps(len(panels()["/call"]) < WORKERS))
    asyncio.run(main())
    """
    assert run(TOOLBAR % "'HTTP_LEASE': 'call'", script) is True


@pytest.mark.parametrize("lease", ["request", "call"])
def test_silk_keeps_the_queries_of_its_request(run, age, lease):
    """Silk keeps the queries of each of many requests at once, and no others."""
    script = """
    import re
    from django.contrib.contenttypes.models import ContentType
    from silk.models import Request
    from tests.instrumentation import project

    def by_the_orm(part, name):
        ContentType.objects.filter(model=f"part {part} of {name}").first()

    project.query = by_the_orm  # silk sees nothing else

    def kept():
        found = {}
        for request in Request.objects.all():
            queries = [each.query for each in request.queries.order_by("start_time")]
            parts = [re.search(r"part \\d of [a-z0-9-]+", query)[0] for query in queries]
            found[request.path] = parts
        return found

    paths = asyncio.run(ask_all(app))
    expected = {path: [query[8:-1] for query in queries] for path, queries in made(paths).items()}
    print(json.dumps([kept(), expected]))
    """
    found, expected = run(SILK % lease, script, CONN_MAX_AGE=age)
    assert found == expected


@pytest.mark.parametrize("tool", ["toolbar", "silk"])
def test_tools_that_take_a_worker(run, tool):
    """Under the toolbar and under silk, a view without queries takes a worker."""
    script = """
    from ormbridge import stats

    async def main():
        print(json.dumps([await get(app, "/ping"), stats().threads]))
    asyncio.run(main())
    """
    set_up = TOOLBAR % "" if tool == "toolbar" else SILK % "request"
    assert run(set_up, script) == ["200 pong", 1]
