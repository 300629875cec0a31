import asyncio
import time

from django.http import HttpResponse
from django.urls import path

from ormbridge import database_sync_to_async, release


@database_sync_to_async
def query():
    time.sleep(0.05)  # what a query of 50 ms does to its thread


async def held(request):
    await query()
    await asyncio.sleep(0.1)  # another service takes its time
    await query()
    return HttpResponse("done")


async def released(request):
    await query()
    await release()  # <--
    await asyncio.sleep(0.1)
    await query()
    return HttpResponse("done")


urlpatterns = [path("held/", held), path("released/", released)]
