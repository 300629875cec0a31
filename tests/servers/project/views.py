"""Views as people write them: nothing in them knows of the bridge, save one that streams."""

import asyncio
import threading
from collections.abc import AsyncIterator

from channels.db import database_sync_to_async
from django.contrib.auth.models import Group
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse

from ormbridge import release
from tests.servers.project import queries

tasks: set["asyncio.Task[None]"] = set()


async def alive(request: HttpRequest) -> HttpResponse:
    return HttpResponse("alive")


async def async_view(request: HttpRequest) -> JsonResponse:
    first = await Group.objects.order_by("pk").afirst()
    again = await Group.objects.aget(pk=first.pk)
    return JsonResponse({"group": again.name})


def sync_view(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"group": Group.objects.order_by("pk").first().name})


async def async_sleep(request: HttpRequest) -> HttpResponse:
    await database_sync_to_async(queries.sleep)()
    return HttpResponse("slept")


def sync_sleep(request: HttpRequest) -> HttpResponse:
    queries.sleep()
    return HttpResponse("slept")


async def async_wait(request: HttpRequest) -> HttpResponse:
    await database_sync_to_async(queries.wait)()
    return HttpResponse("waited")


def sync_wait(request: HttpRequest) -> HttpResponse:
    queries.wait()
    return HttpResponse("waited")


async def async_insert(request: HttpRequest, name: str) -> HttpResponse:
    print("arrived:", name, flush=True)  # noqa: T201 - the harness reads it
    await database_sync_to_async(queries.wait_and_insert)(name)
    return HttpResponse("inserted")


def sync_insert(request: HttpRequest, name: str) -> HttpResponse:
    queries.wait_and_insert(name)
    return HttpResponse("inserted")


async def block(request: HttpRequest) -> HttpResponse:
    """Hold the thread of the event loop for ever."""
    threading.Event().wait()
    return HttpResponse("never")


async def background(request: HttpRequest, name: str) -> HttpResponse:
    """Answer, and leave a task behind that goes on after the request."""
    await Group.objects.acount()

    async def outlive() -> None:
        await database_sync_to_async(queries.wait_and_insert)(name)
        await Group.objects.filter(name=name).aupdate(name=f"{name}, done")

    task = asyncio.create_task(outlive())
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return HttpResponse("begun")


async def events(request: HttpRequest) -> StreamingHttpResponse:
    """Query, give the worker back, and stream until the client has gone."""

    async def stream() -> AsyncIterator[str]:
        count = await Group.objects.acount()
        await release()
        yield f"data: {count}\n\n"
        await asyncio.Event().wait()

    return StreamingHttpResponse(stream(), content_type="text/event-stream")


exported: list[int] = []


async def export(request: HttpRequest) -> StreamingHttpResponse:
    """Stream 64 MiB, far more than the buffers of a connection hold."""

    async def stream() -> AsyncIterator[bytes]:
        for number in range(512):
            exported.append(number)
            yield bytes(128 * 1024)

    return StreamingHttpResponse(stream())


async def export_progress(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(len(exported)))


async def async_raise(request: HttpRequest) -> HttpResponse:
    await Group.objects.acount()
    raise RuntimeError("raised by an async view")


def sync_raise(request: HttpRequest) -> HttpResponse:
    Group.objects.count()
    raise RuntimeError("raised by a sync view")


async def database_error(request: HttpRequest) -> HttpResponse:
    await database_sync_to_async(queries.execute)("SELECT 1/0")
    return HttpResponse("never")


async def stream_raise(request: HttpRequest) -> StreamingHttpResponse:
    async def stream() -> AsyncIterator[str]:
        yield f"{await Group.objects.acount()}\n"
        raise RuntimeError("raised by a streaming response")

    return StreamingHttpResponse(stream())
