"""Views and consumers as people write them, with a tenant or without one.

The path begins with the name of a tenant, ``none`` for none. Under TenantMainMiddleware the host
says it, and views set nothing.
"""

import asyncio
from contextlib import suppress
from typing import Any

from asgiref.sync import async_to_sync, sync_to_async
from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from django.conf import settings
from django.db import OperationalError, connection
from django.http import HttpRequest, JsonResponse
from django.urls import path

from ormbridge import atomic, pinned, release
from ormbridge import database_sync_to_async as bridge
from tests.tenants.models import Owner, owner

tasks: list["asyncio.Task[list[str]]"] = []
requests_are_over = asyncio.Event()


def set_tenant(tenant: str) -> None:
    """Do what a view does without TenantMainMiddleware."""
    if tenant != "none" and not settings.MIDDLEWARE:
        connection.set_schema(tenant)


def sync_view(request: HttpRequest, tenant: str) -> JsonResponse:
    set_tenant(tenant)
    return JsonResponse([owner() for _ in range(3)], safe=False)


def nested_view(request: HttpRequest, tenant: str) -> JsonResponse:
    """Call async code from a sync view: it runs on the same worker."""
    set_tenant(tenant)

    async def ask() -> list[str]:
        return list(await asyncio.gather(*[sync_to_async(owner)() for _ in range(3)]))

    return JsonResponse(async_to_sync(ask)(), safe=False)


async def transaction_view(request: HttpRequest, tenant: str) -> JsonResponse:
    """Ask in a transaction."""
    await sync_to_async(set_tenant)(tenant)
    async with atomic():
        return JsonResponse([await sync_to_async(owner)() for _ in range(3)], safe=False)


async def async_view(request: HttpRequest, tenant: str) -> JsonResponse:
    await sync_to_async(set_tenant)(tenant)
    seen = []
    for _ in range(2):
        await asyncio.sleep(0)
        seen += [(await Owner.objects.aget()).name, await database_sync_to_async(owner)()]
    return JsonResponse(seen, safe=False)


async def released_view(request: HttpRequest, tenant: str) -> JsonResponse:
    """Answer what is seen after release(), which leaves the tenant behind."""
    await sync_to_async(set_tenant)(tenant)
    await sync_to_async(owner)()
    await release()
    await asyncio.sleep(0)
    return JsonResponse([await sync_to_async(owner)() for _ in range(2)], safe=False)


async def task_view(request: HttpRequest, tenant: str) -> JsonResponse:
    """Leave a task behind that asks when all requests are over."""
    await sync_to_async(set_tenant)(tenant)

    async def outlive() -> list[str]:
        await requests_are_over.wait()
        seen = [(await Owner.objects.aget()).name]
        seen += await asyncio.gather(*[bridge(owner)() for _ in range(2)])
        return seen

    tasks.append(asyncio.create_task(outlive()))
    return JsonResponse([await sync_to_async(owner)()], safe=False)


def break_connection() -> None:
    """Have the server close the connection in the middle of a call."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def retried_view(request: HttpRequest, tenant: str) -> JsonResponse:
    """Ask again after the connection broke: the request still has its tenant."""
    await sync_to_async(set_tenant)(tenant)
    with suppress(OperationalError):
        await sync_to_async(break_connection)()
    return JsonResponse([await sync_to_async(owner)() for _ in range(2)], safe=False)


async def parallel_view(request: HttpRequest, tenant: str) -> JsonResponse:
    """Ask on workers that are not the request's: they know nothing of its tenant."""
    await sync_to_async(set_tenant)(tenant)
    await sync_to_async(owner)()
    ask = bridge(owner, thread_sensitive=False)
    return JsonResponse([await ask()], safe=False)


def raising_view(request: HttpRequest, tenant: str) -> JsonResponse:
    """Leave a tenant and an open transaction behind, and raise."""
    set_tenant(tenant)
    owner()
    connection.set_autocommit(False)
    raise RuntimeError("raised by a view")


async def cancelled_view(request: HttpRequest, tenant: str) -> JsonResponse:
    """Ask again after a statement was cancelled: the request still has its tenant."""
    await sync_to_async(set_tenant)(tenant)
    call = asyncio.create_task(sync_to_async(sleep)())
    await sync_to_async(owner)()  # so that the call has come first
    call.cancel()
    await asyncio.wait([call])
    return JsonResponse([await sync_to_async(owner)() for _ in range(2)], safe=False)


def sleep() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(0.01)")


urlpatterns = [
    path(f"<str:tenant>/{name.removesuffix('_view')}", view)
    for name, view in list(globals().items())
    if name.endswith("_view")
]


def set_and_ask(tenant: str) -> str:
    connection.set_schema(tenant)
    return owner()


class Sync(WebsocketConsumer):
    """Answers ``set tenant1`` and ``ask`` in a handler of its own, ``both tenant1`` in one."""

    def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        what, _, tenant = (text_data or "").partition(" ")
        if what in ("set", "both"):
            connection.set_schema(tenant)
        self.send("" if what == "set" else owner())


class Async(AsyncWebsocketConsumer):
    """The same in async code, and what goes on in blocks and after an error."""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        what, _, tenant = (text_data or "").partition(" ")
        answer: Any = getattr(self, what)
        await self.send(await answer(tenant))

    async def set(self, tenant: str) -> str:
        await database_sync_to_async(connection_set)(tenant)
        return ""

    async def ask(self, tenant: str) -> str:
        return await database_sync_to_async(owner)()

    async def both(self, tenant: str) -> str:
        return await database_sync_to_async(set_and_ask)(tenant)

    async def pinned(self, tenant: str) -> str:
        async with pinned():
            await bridge(connection_set)(tenant)
            seen = await asyncio.gather(*[bridge(owner)() for _ in range(3)])
            return ",".join(sorted(set(seen)))

    async def retried(self, tenant: str) -> str:
        with suppress(OperationalError):
            await database_sync_to_async(break_with)(tenant)
        return await database_sync_to_async(owner)()


def connection_set(tenant: str) -> None:
    connection.set_schema(tenant)


def break_with(tenant: str) -> None:
    connection.set_schema(tenant)
    break_connection()
