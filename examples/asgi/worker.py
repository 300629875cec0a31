import asyncio
import threading

from asgiref.sync import sync_to_async
from channels import db
from django.http import JsonResponse
from django.urls import path

import ormbridge


def get_thread_name():
    return threading.current_thread().name


async def threads(request):
    names = await asyncio.gather(
        sync_to_async(get_thread_name)(),
        db.database_sync_to_async(get_thread_name)(),
        ormbridge.database_sync_to_async(get_thread_name)(),
    )
    return JsonResponse({"threads": names})


urlpatterns = [path("threads/", threads)]
