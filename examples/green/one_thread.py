import asyncio
import threading

import django
from django.conf import settings
from django.db import connection

from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}},
    ORMBRIDGE={"GREEN": True},  # <--
)
django.setup()


seen = []


def ask():
    with connection.cursor() as cursor:
        seen.append("asks")
        cursor.execute("SELECT pg_sleep(1)")
        seen.append("answered")
    return threading.current_thread().name


async def main():
    for green in (False, True):
        seen.clear()
        call = database_sync_to_async(ask, green=green)
        print("threads:", *sorted({*await asyncio.gather(call(), call(), call())}))
        print("order:", *seen)


if __name__ == "__main__":
    asyncio.run(main())
