"""Views: one reads, one writes, one takes its time, one says which process it is."""

import os

from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpResponse, JsonResponse
from django.views.decorators.http import require_POST

from ormbridge import atomic, database_sync_to_async, stats


async def index(request):
    return HttpResponse(f"{await User.objects.acount()} users\n")


@require_POST
async def sign_up(request):
    async with atomic():
        user = await User.objects.acreate(username=request.POST["name"])
    return HttpResponse(f"Hello, {user.username}\n", status=201)


@database_sync_to_async
def sleep(seconds):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


async def slow(request):
    await sleep(float(request.GET.get("seconds", 0.05)))
    return HttpResponse("slept\n")


async def process(request):
    pool = stats()
    return JsonResponse({"pid": os.getpid(), "threads": pool.threads, "most": pool.max_threads})
