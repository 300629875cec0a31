import asyncio

import django
from django.conf import settings
from django.db import connection

from ormbridge import database_sync_to_async, pinned

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "pinned.sqlite3"}}
)
django.setup()


@database_sync_to_async
def execute(sql, *values):
    with connection.cursor() as cursor:
        cursor.execute(sql, values)
        return cursor.fetchall()


async def fill_basket(*items):
    async with pinned():  # <--
        await execute("CREATE TEMPORARY TABLE basket (item TEXT)")
        for item in items:
            await execute("INSERT INTO basket VALUES (%s)", item)
        return await execute("SELECT item FROM basket")


async def main():
    for basket in await asyncio.gather(fill_basket("tea", "bread"), fill_basket("milk")):
        print(basket)


if __name__ == "__main__":
    asyncio.run(main())
