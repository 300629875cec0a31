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


def ask():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid() FROM pg_sleep(1)")
        return threading.current_thread().name, cursor.fetchone()[0]


async def main():
    for green in (False, True):
        call = database_sync_to_async(ask, green=green)
        answers = await asyncio.gather(call(), call(), call())
        threads, connections = zip(*answers, strict=True)
        print(f"{len({*connections})} connections, threads:", *sorted({*threads}))


if __name__ == "__main__":
    asyncio.run(main())
