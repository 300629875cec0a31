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
            "OPTIONS": {"pool": {"min_size": 1, "max_size": 2, "timeout": 0.5}},
        }
    },
)
django.setup()

both_are_connected = threading.Barrier(2)


def leave_open():
    connection.ensure_connection()
    both_are_connected.wait(timeout=30)


def close():
    try:
        leave_open()
    finally:
        connection.close()  # <--


@database_sync_to_async
def get_answer():
    connection.ensure_connection()
    return 42


async def main(function):
    # These threads end with the event loop.
    await asyncio.gather(*[asyncio.to_thread(function) for _ in range(2)])


async def ask_afterwards():
    try:
        return await get_answer()
    except OperationalError as error:
        return error


if __name__ == "__main__":
    for function in [close, leave_open]:
        asyncio.run(main(function))
        print(f"after {function.__name__}(): {asyncio.run(ask_afterwards())}")
    connection.close_pool()
