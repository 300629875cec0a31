import asyncio
from pathlib import Path

import django
from django.conf import settings
from django.db import OperationalError

from ormbridge import database_sync_to_async, stream

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "writers.sqlite3",
            "OPTIONS": {"timeout": 20, "init_command": "PRAGMA journal_mode=WAL"},
        }
    },
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


async def another_request():
    await User.objects.acreate(username="carol")  # on a connection of its own


async def main():
    await User.objects.abulk_create(User(username=f"user {number}") for number in range(10))
    async for user in stream(User.objects.order_by("username"), chunk_size=2):
        await another_request()
        try:
            await database_sync_to_async(user.save)()  # <--
        except OperationalError as error:
            print(f"OperationalError: {error}")
        break


if __name__ == "__main__":
    Path("writers.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
