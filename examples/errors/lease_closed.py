import asyncio

import django
from django.conf import settings

from ormbridge import LeaseClosed, atomic, database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()


@database_sync_to_async
def log():
    print("written")


async def log_later(committed):
    await committed.wait()
    try:
        await log()
    except LeaseClosed as error:
        print(f"LeaseClosed: {error}")


async def main():
    committed = asyncio.Event()
    async with atomic():
        task = asyncio.create_task(log_later(committed))  # <--
    committed.set()
    await task


if __name__ == "__main__":
    asyncio.run(main())
