import asyncio

import django
from django.conf import settings

from ormbridge import PoolTimeout, atomic, database_sync_to_async, pinned

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    ORMBRIDGE={"TIMEOUT": 0.5},  # seconds; 30 unless you set it
)
django.setup()


@database_sync_to_async
def log():
    print("written")


async def log_after(begun):
    await begun.wait()
    await log()


async def main():
    begun = asyncio.Event()
    try:
        async with pinned():
            task = asyncio.create_task(log_after(begun))
            async with atomic():
                begun.set()
                await task  # <-- outside of the transaction, and on the same worker
    except PoolTimeout as error:
        print(f"PoolTimeout: {error}")


if __name__ == "__main__":
    asyncio.run(main())
