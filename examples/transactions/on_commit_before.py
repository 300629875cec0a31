import asyncio
from pathlib import Path

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "on_commit.sqlite3"}},
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


async def send_mail():
    print("mail sent")


async def main():
    async with AsyncAtomic():
        try:
            transaction.on_commit(lambda: print("directly"))
        except SynchronousOnlyOperation as error:
            print(f"{type(error).__name__}: {error}")
        await asyncio.to_thread(transaction.on_commit, lambda: print("on another thread"))
        await sync_to_async(transaction.on_commit)(send_mail)
        await User.objects.acreate(username="ada")
        print("the block ends here")


if __name__ == "__main__":
    Path("on_commit.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
