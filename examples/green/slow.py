import asyncio
import logging
import sys
import time

import django
from django.conf import settings
from django.db import connection

from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}},
    ORMBRIDGE={"GREEN": True, "GREEN_SLOW": 0.1},  # <--
)
django.setup()
logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(name)s: %(message)s")


def pay():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    time.sleep(0.5)


async def main():
    for green in (False, True, True):
        await database_sync_to_async(pay, green=green)()


if __name__ == "__main__":
    asyncio.run(main())
