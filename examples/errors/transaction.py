import asyncio

import django
from asgiref.sync import async_to_sync
from django.conf import settings
from django.db import transaction

from ormbridge import PoolTimeout, database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    ORMBRIDGE={"MAX_THREADS": 1},
)
django.setup()


def log():
    print("kept, whatever becomes of the transaction")


log_apart = database_sync_to_async(log, thread_sensitive=False)


@database_sync_to_async
def pay():
    with transaction.atomic():
        async_to_sync(log_apart)()  # <--


async def main():
    try:
        await pay()
    except PoolTimeout as error:
        print(f"PoolTimeout: {error}")


if __name__ == "__main__":
    asyncio.run(main())
