import asyncio
from pathlib import Path

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import transaction

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "straggler.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


class AsyncAtomic:  # <--
    def __init__(self):
        self.atomic = transaction.atomic()

    async def __aenter__(self):
        await sync_to_async(self.atomic.__enter__)()

    async def __aexit__(self, *error):
        return await sync_to_async(self.atomic.__exit__)(*error)


async def pay():
    raise ValueError("card declined")


async def invite(rolled_back):
    await rolled_back.wait()
    try:
        await User.objects.acreate(username="guest")
    except RuntimeError as error:
        print(f"{type(error).__name__}: {error}")


async def main():
    rolled_back = asyncio.Event()
    try:
        async with AsyncAtomic():
            await User.objects.acreate(username="ada")
            guest = asyncio.create_task(invite(rolled_back))
            await asyncio.gather(pay(), guest)
    except ValueError:
        print("rolled back")
        rolled_back.set()
    await guest
    print("in the database:", [user.username async for user in User.objects.all()])


if __name__ == "__main__":
    Path("straggler.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
