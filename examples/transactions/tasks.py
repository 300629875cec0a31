import asyncio
from pathlib import Path

import django
from django.conf import settings

from ormbridge import atomic

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "tasks.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


async def invite(name):
    if name == "eve":
        raise ValueError("eve is not welcome")
    await User.objects.acreate(username=name)


async def invite_all(*names):
    async with atomic(), asyncio.TaskGroup() as group:  # <--
        for name in names:
            group.create_task(invite(name))


async def main():
    await invite_all("ada", "bob")
    try:
        await invite_all("cy", "eve")
    except ExceptionGroup as error:
        print(f"rolled back: {error.exceptions}")
    print("in the database:", [user.username async for user in User.objects.order_by("pk")])


if __name__ == "__main__":
    Path("tasks.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
