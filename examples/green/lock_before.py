import asyncio
import threading

import django
from django.conf import settings
from django.db import connection

from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}},
    ORMBRIDGE={"GREEN": True},
)
django.setup()

lock = threading.RLock()
last = 0


def next_number():
    global last
    with lock:
        number = last + 1
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")  # others run meanwhile, and have the lock as well
        last = number
        return number


async def main():
    for green in (False, True):
        call = database_sync_to_async(next_number, green=green)
        print(f"green={green}:", *await asyncio.gather(call(), call()))


if __name__ == "__main__":
    asyncio.run(main())
