"""Ways to call the database, and what they see of a test's users."""

import asyncio

from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from channels.db import database_sync_to_async as channels_database_sync_to_async
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpResponse
from django.test import AsyncClient
from django.urls import path

from ormbridge import (
    database_sync_to_async,
    stream,
)


def names():
    return sorted(User.objects.values_list("username", flat=True))


async def in_a_context():
    async with ThreadSensitiveContext():
        return await sync_to_async(names)()


async def below_a_frame():
    return await sync_to_async(async_to_sync(database_sync_to_async(names)))()


async def on_a_loop_of_its_own():
    def run():
        return asyncio.run(database_sync_to_async(names)())

    return await database_sync_to_async(run)()


async def iterating():
    return [user.username async for user in User.objects.order_by("username")]


async def streaming():
    users = User.objects.order_by("username")
    return [user.username async for user in stream(users, chunk_size=1)]


async def in_a_view(settings):
    async def view(request):
        return HttpResponse(" ".join(await database_sync_to_async(names)()))

    settings.ROOT_URLCONF = (path("", view),)
    response = await AsyncClient().get("/")
    return response.content.decode().split()


async def make(name):
    await User.objects.acreate(username=name)


def count_and_close():
    try:
        return User.objects.count()
    finally:
        connection.close()


WAYS = {
    "bridge": database_sync_to_async(names),
    "bridge, thread_sensitive=True": database_sync_to_async(names, thread_sensitive=True),
    "bridge, thread_sensitive=False": database_sync_to_async(names, thread_sensitive=False),
    "channels.db": channels_database_sync_to_async(names),
    "sync_to_async": sync_to_async(names),
    "async for": iterating,
    "stream": streaming,
    "a ThreadSensitiveContext": in_a_context,
    "a synchronous frame": below_a_frame,
    "an event loop of its own": on_a_loop_of_its_own,
}
