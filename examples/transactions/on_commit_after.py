import asyncio
from functools import partial
from pathlib import Path

import django
from django.conf import settings
from django.db import transaction

from ormbridge import atomic, database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "on_commit.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command

on_commit = database_sync_to_async(transaction.on_commit)  # <--


async def send_mail(user):
    await asyncio.sleep(0.01)  # the mail server takes its time
    print(f"mail sent to {user.username}")


async def main():
    async with atomic():
        user = await User.objects.acreate(username="ada")
        await on_commit(partial(send_mail, user))
        await on_commit(lambda: print("committed"))
        print("the block ends here")
    print("after the block")


if __name__ == "__main__":
    Path("on_commit.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
