"""A project that a script in a process of its own sets up, with a tool in it."""

import asyncio
import os
from collections.abc import Awaitable, Iterable
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

from tests.gate import Gate
from tests.guide.http import get
from tests.servers.harness import address

GATE = Gate()
#: On so few workers do REQUESTS run at once.
WORKERS = 3
REQUESTS = 40
# Each of these names the request, so that a tool tells whose it is.
QUERY = "SELECT 'query {} of {}'"


def set_up(**changes: Any) -> None:
    """Configure Django and the bridge."""
    place = address(os.environ["INSTRUMENTATION_DATABASE"])
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": place["dbname"],
        "HOST": place["host"],
        "PORT": place["port"],
        "USER": place["user"],
        "PASSWORD": place["password"],
        "CONN_MAX_AGE": int(os.environ.get("AGE", "60")),
    }
    usual = {
        "ALLOWED_HOSTS": ["*"],
        "DATABASES": {"default": database},
        "INSTALLED_APPS": ["django.contrib.contenttypes"],
        "ORMBRIDGE": {"MAX_THREADS": WORKERS},
        "ROOT_URLCONF": __name__,
        "SECRET_KEY": "for tests only",
        "USE_TZ": True,
    }
    settings.configure(**{**usual, **changes})
    django.setup()


def query(name: str, part: int) -> None:
    """Make the query *part* of the request *name*."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(QUERY.format(part, name))


async def ping(request: Any) -> HttpResponse:
    """Answer without a query."""
    return HttpResponse("pong")


async def fail(request: Any) -> HttpResponse:
    """Raise, without a query."""
    raise ValueError("this view fails")


async def hold(request: Any) -> HttpResponse:
    """Keep a worker until the gate is open."""
    return HttpResponse(await sync_to_async(GATE)())


async def queries(request: Any, name: str) -> HttpResponse:
    """Make three queries, each in its own way."""
    from ormbridge import database_sync_to_async

    await sync_to_async(query)(name, 1)
    await database_sync_to_async(query)(name, 2)
    await asyncio.create_task(sync_to_async(query)(name, 3))
    return HttpResponse(f"<body>{name}</body>")


def sync_queries(request: Any, name: str) -> HttpResponse:
    """Make three queries in a synchronous view."""
    for part in (1, 2, 3):
        query(name, part)
    return HttpResponse(f"<body>{name}</body>")


urlpatterns = [
    path("ping", ping),
    path("fail", fail),
    path("hold", hold),
    path("async/<name>", queries),
    path("sync/<name>", sync_queries),
]


def application() -> Any:
    """Return the application with the one line added."""
    from django.core.asgi import get_asgi_application

    from ormbridge import BridgeMiddleware

    return BridgeMiddleware(get_asgi_application())


async def ask_while_full(app: Any, where: str) -> str:
    """Return the answer that *app* gives while other requests have every worker."""
    holding = [asyncio.create_task(get(app, "/hold")) for _ in range(WORKERS)]
    await GATE.entered(WORKERS)
    answer = await get(app, where)
    GATE.open.set()
    await asyncio.gather(*holding)
    return answer


async def ask_many(app: Any) -> list[str]:
    """Make REQUESTS at once, every other one to a synchronous view; return their names."""
    names = [f"{('async', 'sync')[number % 2]}/{number}-" for number in range(REQUESTS)]
    answers = await asyncio.gather(*[get(app, f"/{name}") for name in names])
    assert answers == [f"200 <body>{name.partition('/')[2]}</body>" for name in names]
    return names


def expected(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the queries that each of the requests *names* makes."""
    return {
        f"/{name}": [QUERY.format(part, name.partition("/")[2]) for part in (1, 2, 3)]
        for name in names
    }


def run(main: Awaitable[Any]) -> Any:
    """Run *main* as a server would: with a loop on the main thread."""
    return asyncio.run(main)  # type: ignore[arg-type]
