"""What code keeps on its thread: a tenant, the flag of a router for replicas, the current user."""

import threading
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection
from django.http import HttpRequest, JsonResponse

local = threading.local()


def reset(connection: Any) -> None:
    """Stand in for what a project names in RESET."""
    local.__dict__.clear()


def keep(tenant: str) -> None:
    if tenant != "nobody":
        local.tenant, local.use_replica, local.user = tenant, tenant, tenant


def seen() -> list[str]:
    return [getattr(local, name, "nobody") for name in ("tenant", "use_replica", "user")]


def query(times: int) -> None:
    for _ in range(times):
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")


def sync_view(request: HttpRequest, tenant: str, queries: int) -> JsonResponse:
    keep(tenant)
    query(queries)
    return JsonResponse(seen(), safe=False)


async def async_view(request: HttpRequest, tenant: str, queries: int) -> JsonResponse:
    await sync_to_async(keep)(tenant)
    await sync_to_async(query)(queries)
    return JsonResponse(await sync_to_async(seen)(), safe=False)
