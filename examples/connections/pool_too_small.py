import asyncio
import threading

import django
from django.conf import settings
from django.db import OperationalError, connection

from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "CONN_MAX_AGE": 0,
            "OPTIONS": {"pool": {"min_size": 1, "max_size": 1, "timeout": 0.5}},  # <--
        }
    },
    ORMBRIDGE={"MAX_THREADS": 2},  # <--
)
django.setup()

is_connected = threading.Event()
may_end = threading.Event()


@database_sync_to_async
def write_report():
    try:
        connection.ensure_connection()
    finally:
        is_connected.set()
    may_end.wait()


@database_sync_to_async
def get_name():
    is_connected.wait()
    connection.ensure_connection()


async def main():
    report = asyncio.create_task(write_report())
    try:
        await get_name()
    except OperationalError as error:
        print(f"{type(error.__cause__).__module__}.{type(error.__cause__).__name__}: {error}")
    finally:
        may_end.set()
        await report


if __name__ == "__main__":
    asyncio.run(main())
    connection.close_pool()
