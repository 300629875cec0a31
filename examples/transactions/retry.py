import asyncio

from django.contrib.auth.models import User
from django.db import OperationalError

from ormbridge import atomic

users = User.objects.select_for_update()


async def ask_another_service():
    await asyncio.sleep(0.1)


async def marry(first, second, name):
    async with atomic():
        one = await users.aget(username=first)
        await ask_another_service()
        other = await users.aget(username=second)
        one.last_name = other.last_name = name
        await one.asave()
        await other.asave()


async def marry_with_retry(first, second, name, attempts=3):
    for attempt in range(1, attempts + 1):
        try:
            await marry(first, second, name)
            break
        except OperationalError:  # <-- around the block, never inside
            if attempt == attempts:
                raise
            print(f"{first} and {second}: again")
