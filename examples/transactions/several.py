import asyncio
from contextlib import suppress
from pathlib import Path

import django
from django.conf import settings

from ormbridge import atomic

settings.configure(
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"},
        "archive": {"ENGINE": "django.db.backends.sqlite3", "NAME": "archive.sqlite3"},
    },
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


async def move(name):
    async with atomic(), atomic(using="archive"):  # <--
        user = await User.objects.aget(username=name)
        await User.objects.using("archive").acreate(username=name)
        await user.adelete()
        if name == "bob":
            raise ValueError("bob is still needed")


async def main():
    for name in ["ada", "bob"]:
        await User.objects.acreate(username=name)
    await move("ada")
    with suppress(ValueError):
        await move("bob")
    for alias in ["default", "archive"]:
        print(f"{alias}:", [user.username async for user in User.objects.using(alias).all()])


if __name__ == "__main__":
    for alias, name in [("default", "shop.sqlite3"), ("archive", "archive.sqlite3")]:
        Path(name).unlink(missing_ok=True)
        call_command("migrate", database=alias, verbosity=0)
    asyncio.run(main())
