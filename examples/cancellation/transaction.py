import asyncio

import django
from django.conf import settings
from django.db import connection
from django.db.transaction import TransactionManagementError

from ormbridge import atomic, database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}},
)
django.setup()


@database_sync_to_async
def execute(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)


async def main():
    try:
        async with atomic():
            await execute("CREATE TABLE ormbridge_example (name text)")
            try:
                await asyncio.wait_for(execute("SELECT pg_sleep(30)"), 0.1)
            except TimeoutError:
                print("went on")  # <--
            await execute("INSERT INTO ormbridge_example VALUES ('ada')")
    except TransactionManagementError as error:
        print(error)
        print("because:", error.__cause__)


if __name__ == "__main__":
    asyncio.run(main())
