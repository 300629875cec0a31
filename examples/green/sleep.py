import asyncio
import time

import django
from django.conf import settings
from django.db import connection

from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}},
    ORMBRIDGE={"GREEN": True},
)
django.setup()

turns = 0


async def tick():
    global turns
    while True:
        await asyncio.sleep(0)
        turns += 1


def pay():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    before = turns
    time.sleep(0.5)  # as a request to another server does
    return turns - before


async def main():
    ticker = asyncio.create_task(tick())
    for green in (False, True):
        turned = await database_sync_to_async(pay, green=green)()
        print(f"green={green}: the loop", "went on" if turned else "stood still")
    ticker.cancel()


if __name__ == "__main__":
    asyncio.run(main())
