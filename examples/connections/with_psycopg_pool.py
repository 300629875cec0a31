import asyncio
import threading

import django
from django.conf import settings
from django.db import connection

from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "CONN_MAX_AGE": 0,
            "OPTIONS": {"pool": {"min_size": 1, "max_size": 3}},  # <--
        }
    },
    ORMBRIDGE={"MAX_THREADS": 3},  # <--
)
django.setup()

all_are_connected = threading.Barrier(3)


@database_sync_to_async
def get_answer():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        all_are_connected.wait(timeout=30)
        return cursor.fetchone()[0]


async def main():
    print(await asyncio.gather(*[get_answer() for _ in range(9)]))


if __name__ == "__main__":
    asyncio.run(main())
    connection.close_pool()
