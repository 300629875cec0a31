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
            "CONN_MAX_AGE": 60,
        }
    },
    ORMBRIDGE={"MAX_THREADS": 10},  # the server of this example has room for 6
)
django.setup()

all_have_tried = threading.Barrier(10)


@database_sync_to_async
def connect():
    try:
        connection.ensure_connection()  # <--
    finally:
        all_have_tried.wait(timeout=30)


async def main():
    results = await asyncio.gather(*[connect() for _ in range(10)], return_exceptions=True)
    errors = list(filter(None, results))
    print(f"{results.count(None)} connected, {len(errors)} did not")
    print(errors[0] if errors else "This server has room for all of them: try more threads.")


if __name__ == "__main__":
    asyncio.run(main())
