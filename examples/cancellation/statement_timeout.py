import asyncio

import django
from django.conf import settings
from django.db import OperationalError, connection

from ormbridge import atomic, database_sync_to_async

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "OPTIONS": {"options": "-c statement_timeout=100"},  # <-- milliseconds
        }
    },
)
django.setup()


@database_sync_to_async
def execute(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall() if cursor.description else None


async def main():
    async with atomic():
        await execute("CREATE TEMPORARY TABLE report (line text)")
        try:
            async with atomic():  # <-- what may take too long, in a block of its own
                await execute("INSERT INTO report SELECT pg_sleep(30)")
        except OperationalError as error:
            print(str(error).strip())
        await execute("INSERT INTO report VALUES ('no figures today')")
        print(await execute("SELECT * FROM report"))


if __name__ == "__main__":
    asyncio.run(main())
