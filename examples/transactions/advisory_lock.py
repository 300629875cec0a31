import asyncio

from django.db import connection
from django.http import HttpResponse
from django.urls import path

from ormbridge import database_sync_to_async, pinned

REPORTS = 1  # any number that the whole project agrees on


@database_sync_to_async
def execute(sql, *values):
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


async def report(request):
    async with pinned():  # <--
        await execute("SELECT pg_advisory_lock(%s)", REPORTS)
        try:
            await asyncio.sleep(0.05)  # only one request at a time is here
        finally:
            await execute("SELECT pg_advisory_unlock(%s)", REPORTS)
    return HttpResponse("done")


urlpatterns = [path("report/", report)]
