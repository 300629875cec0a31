import asyncio
from pathlib import Path

import django
from django.conf import settings

from ormbridge import atomic  # <--

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "lost.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


async def order():
    async with atomic():
        await User.objects.acreate(username="buyer")
        await asyncio.sleep(0.1)  # the bank takes its time
        raise ValueError("the bank says no")


async def sign_up():
    await asyncio.sleep(0.05)
    await User.objects.acreate(username="ada")
    print("ada: signed up")


async def main():
    await asyncio.gather(order(), sign_up(), return_exceptions=True)
    print("in the database:", [user.username async for user in User.objects.all()])


if __name__ == "__main__":
    Path("lost.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
