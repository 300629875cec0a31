import asyncio

import django
from django.conf import settings

from ormbridge import BridgeMiddleware, atomic, database_sync_to_async, pinned, stream

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections


async def block_in_an_async_generator():
    async def names():
        async with pinned():
            yield "ada"

    await anext(names())


async def block_around_a_function():
    atomic()(print)


async def enter(block):
    await block.__aenter__()


async def block_that_is_left_elsewhere():
    block = atomic()
    await asyncio.create_task(enter(block))
    await block.__aexit__(None, None, None)


async def iteration_that_goes_on_after_its_block():
    async with atomic():
        users = User.objects.aiterator(chunk_size=1)
        await anext(users)
    await anext(users)


async def stream_that_goes_on_after_its_block():
    async with atomic():
        users = aiter(stream(User.objects.all(), chunk_size=1))
        await anext(users)
    await anext(users)


async def stream_that_is_read_twice():
    users = stream(User.objects.all())
    async for user in users:
        assert user.username
    async for user in users:
        assert user.username


async def stream_that_two_tasks_read():
    users = aiter(stream(User.objects.all()))
    await asyncio.gather(anext(users), anext(users))


async def stream_of_a_manager():
    stream(User)


async def stream_of_chunks_of_nothing():
    stream(User.objects.all(), chunk_size=0)


async def error_that_is_caught_in_a_block():
    async with atomic():
        await User.objects.acreate(username="grace")
        try:
            await User.objects.acreate(username="grace")
        except Exception as error:
            caught.append(error)


async def function_that_raises_stop_iteration():
    await database_sync_to_async(lambda: next(iter([])))()


async def middleware_around_nothing():
    BridgeMiddleware(None)


caught = []
MISTAKES = [
    block_in_an_async_generator,
    block_around_a_function,
    block_that_is_left_elsewhere,
    iteration_that_goes_on_after_its_block,
    stream_that_goes_on_after_its_block,
    stream_that_is_read_twice,
    stream_that_two_tasks_read,
    stream_of_a_manager,
    stream_of_chunks_of_nothing,
    error_that_is_caught_in_a_block,
    function_that_raises_stop_iteration,
    middleware_around_nothing,
]


async def main():
    for make in MISTAKES:
        try:
            await make()
        except Exception as error:
            print(f"{make.__name__}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    User.objects.bulk_create([User(username=name) for name in ("ada", "barbara", "mary")])
    asyncio.run(main())
    connections.close_all()
