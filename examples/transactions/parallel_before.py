import asyncio
from pathlib import Path

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import transaction

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "parallel.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


class AsyncAtomic:
    def __init__(self):
        self.atomic = transaction.atomic()

    async def __aenter__(self):
        await sync_to_async(self.atomic.__enter__)()

    async def __aexit__(self, *error):
        return await sync_to_async(self.atomic.__exit__)(*error)


async def main():
    try:
        async with AsyncAtomic():
            create = sync_to_async(User.objects.create, thread_sensitive=False)  # <--
            await create(username="ada")
            raise ValueError("card declined")
    except ValueError:
        print("rolled back")
    print("in the database:", [user.username async for user in User.objects.all()])


if __name__ == "__main__":
    Path("parallel.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
