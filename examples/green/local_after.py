import asyncio
from contextvars import ContextVar

import django
from django.conf import settings
from django.db import connection

from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}},
    ORMBRIDGE={"GREEN": True},
)
django.setup()

current = ContextVar("current")


def greet(name):
    current.set(name)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'Hello'")  # others run meanwhile
        return f"{cursor.fetchone()[0]} {current.get()}."


async def main():
    for green in (False, True):
        call = database_sync_to_async(greet, green=green)
        print(f"green={green}:", *await asyncio.gather(call("ada"), call("bob")))


if __name__ == "__main__":
    asyncio.run(main())
