import asyncio
import time
from pathlib import Path

import django
from asgiref.sync import sync_to_async
from django.conf import settings

from ormbridge import atomic  # <--

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "gather.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


@sync_to_async
def insert(name):
    time.sleep(0.02)  # what a query of 20 ms does to its thread
    User.objects.create(username=name)


async def sign_up(name):
    async with atomic():
        await insert(name)
        await insert(f"guest of {name}")
        if name == "eve":
            raise ValueError("eve is not welcome")


async def main():
    async with atomic():
        eve, ada = await asyncio.gather(sign_up("eve"), sign_up("ada"), return_exceptions=True)
    print("eve:", eve or "signed up")
    print("ada:", ada or "signed up")
    print("in the database:", [user.username async for user in User.objects.order_by("pk")])


if __name__ == "__main__":
    Path("gather.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
