import asyncio
import threading

import django
from channels.db import database_sync_to_async  # <--
from django.conf import settings
from django.db import connection, connections

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "CONN_MAX_AGE": None,
        }
    },
    ORMBRIDGE={"MAX_THREADS": 1},  # so that the temporary table is there for all calls
)
django.setup()

is_half_way = threading.Event()


def execute(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else None


@database_sync_to_async
def sign_up():
    execute("INSERT INTO sign_ups VALUES ('the user')")
    is_half_way.set()
    execute("SELECT pg_sleep(1)")  # something slow
    execute("INSERT INTO sign_ups VALUES ('the profile')")


async def main():
    await database_sync_to_async(execute)("CREATE TEMPORARY TABLE sign_ups (what text)")
    task = asyncio.create_task(sign_up())
    await asyncio.to_thread(is_half_way.wait)
    task.cancel()  # as when the client leaves, or the time is up
    await asyncio.wait([task])
    rows = await database_sync_to_async(execute)("SELECT what FROM sign_ups")
    await database_sync_to_async(connections.close_all)()
    print("written:", ", ".join(what for (what,) in rows) or "nothing")


if __name__ == "__main__":
    asyncio.run(main())
