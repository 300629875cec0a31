import asyncio
import time

from django.db import connection
from django.http import HttpResponse
from django.urls import path

from ormbridge import database_sync_to_async


@database_sync_to_async
def query():
    connection.ensure_connection()
    time.sleep(0.02)  # what a query of 20 ms does to its thread


async def view(request):
    await query()
    await asyncio.sleep(0.02)  # the request waits for something else
    await query()
    return HttpResponse("done")


urlpatterns = [path("", view)]
