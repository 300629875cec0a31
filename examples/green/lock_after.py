import asyncio

import django
from django.conf import settings
from django.db import connection

from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}},
    ORMBRIDGE={"GREEN": True},
)
django.setup()

lock = asyncio.Lock()
last = 0


def next_number():
    global last
    number = last + 1
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")  # others run meanwhile
    last = number
    return number


async def call(green):
    async with lock:
        return await database_sync_to_async(next_number, green=green)()


async def main():
    for green in (False, True):
        print(f"green={green}:", *await asyncio.gather(call(green), call(green)))


if __name__ == "__main__":
    asyncio.run(main())
