import asyncio
import time

import django
from channels.db import database_sync_to_async
from django.conf import settings
from django.db import connection

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}},
    ORMBRIDGE={"MAX_THREADS": 1},
)
django.setup()

ran_to_their_end = []


@database_sync_to_async
def query(name, seconds):
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])
    ran_to_their_end.append(name)


async def main():
    await query("first", 0)
    try:
        await asyncio.wait_for(query("slow", 1), 0.1)  # <--
    except TimeoutError:
        print("the slow query took too long")
    started = time.monotonic()
    await query("next", 0)
    print(f"the next one took {time.monotonic() - started:.3f} s")
    print("ran to their end:", ", ".join(ran_to_their_end))


if __name__ == "__main__":
    asyncio.run(main())
