"""A project that a script in a process of its own sets up, with a tool in it."""

import asyncio
import os
from collections.abc import Callable
from typing import Any

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.urls import path

from tests.core.gate import GUARD, Gate
from tests.servers.harness import address
from tests.support.http import get

#: Many REQUESTS at once run on few WORKERS.
WORKERS = 3
REQUESTS = 40
GATE = Gate()


def set_up(**changes: Any) -> None:
    """Configure Django and the bridge; *changes* are settings."""
    place = address(os.environ["INSTRUMENTATION_DATABASE"])
    database = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": place["dbname"],
        "HOST": place["host"],
        "PORT": place["port"],
        "USER": place["user"],
        "PASSWORD": place["password"],
        "CONN_MAX_AGE": int(os.environ.get("CONN_MAX_AGE", "60")),
    }
    usual = {
        "ALLOWED_HOSTS": ["*"],
        "DATABASES": {"default": database},
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "INSTALLED_APPS": ["django.contrib.contenttypes"],
        "ORMBRIDGE": {"MAX_THREADS": WORKERS},
        "ROOT_URLCONF": __name__,
        "SECRET_KEY": "for tests only",
        "USE_TZ": True,
    }
    settings.configure(**{**usual, **changes})
    django.setup()


def sql(part: int, name: str) -> str:
    """Return the query *part* of the request *name*."""
    return f"SELECT 'part {part} of {name}'"


def query(part: int, name: str) -> None:
    """Make the query *part* of the request *name*."""
    with connection.cursor() as cursor:
        cursor.execute(sql(part, name))


async def ping(request: HttpRequest) -> HttpResponse:
    """Answer without a query."""
    return HttpResponse("pong")


async def fail(request: HttpRequest) -> HttpResponse:
    """Raise, without a query."""
    raise ValueError("this view fails")


async def hold(request: HttpRequest) -> HttpResponse:
    """Keep a worker until the gate is open."""
    return HttpResponse(await sync_to_async(GATE)())


async def queries(request: HttpRequest, name: str) -> HttpResponse:
    """Make three queries, each in another way."""
    from ormbridge import database_sync_to_async

    await sync_to_async(query)(1, name)
    await database_sync_to_async(query)(2, name)
    await asyncio.create_task(sync_to_async(query)(3, name))
    return HttpResponse(f"<body>{name}</body>")


def sync_queries(request: HttpRequest, name: str) -> HttpResponse:
    """Make three queries in a synchronous view."""
    for part in (1, 2, 3):
        query(part, name)
    return HttpResponse(f"<body>{name}</body>")


urlpatterns = [
    path("ping", ping),
    path("fail", fail),
    path("hold", hold),
    path("async/<name>", queries),
    path("sync/<name>", sync_queries),
]


def application() -> Any:
    """Return Django's application with the one line added."""
    from ormbridge import BridgeMiddleware

    return BridgeMiddleware(get_asgi_application())


async def while_full(app: Any, where: str) -> str:
    """Return what *app* answers while other requests have every worker."""
    holding = [asyncio.create_task(get(app, "/hold")) for _ in range(WORKERS)]
    await GATE.entered(WORKERS)
    answer = await get(app, where)
    GATE.open.set()
    await asyncio.gather(*holding)
    return answer


async def ask_all(app: Any) -> list[str]:
    """Make REQUESTS at once, every other one to a synchronous view; return their paths."""
    paths = [f"/{('async', 'sync')[number % 2]}/request-{number}-" for number in range(REQUESTS)]
    answers = await asyncio.gather(*[get(app, each) for each in paths])
    for asked, answer in zip(paths, answers, strict=True):
        assert answer.startswith(f"200 <body>{asked.rpartition('/')[2]}"), answer
    return paths


def made(paths: list[str]) -> dict[str, list[str]]:
    """Return the queries that the requests to *paths* make, for each."""
    return {each: [sql(part, each.rpartition("/")[2]) for part in (1, 2, 3)] for each in paths}


async def until(condition: Callable[[], Any]) -> None:
    """Wait until another thread has made *condition* true."""
    async with asyncio.timeout(GUARD):
        while not condition():  # noqa: ASYNC110 # another thread makes it true
            await asyncio.sleep(0.005)
