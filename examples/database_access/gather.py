import asyncio

from django.contrib.auth.models import User
from django.http import JsonResponse
from django.urls import path

from ormbridge import database_sync_to_async


@database_sync_to_async
def count_users():
    return User.objects.count()


@database_sync_to_async
def get_newest_name():
    return User.objects.latest("pk").username


async def dashboard(request):
    users, newest = await asyncio.gather(count_users(), get_newest_name())  # <--
    return JsonResponse({"users": users, "newest": newest})


urlpatterns = [path("dashboard/", dashboard)]
