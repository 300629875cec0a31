import asyncio
import time

from django.contrib.auth.models import User

from ormbridge import stream


def upload(names):
    time.sleep(0.03)  # what a service does that takes 30 ms


async def send(users, chunk_size=2000):
    names = []
    async for user in users:
        names.append(user.username)
        if len(names) == chunk_size:
            await asyncio.to_thread(upload, names)
            names = []


async def main():
    await send(stream(User.objects.order_by("pk"), chunk_size=2000))  # <--
