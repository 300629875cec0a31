import asyncio
from pathlib import Path

import django
from django.conf import settings

from ormbridge import PoolTimeout, atomic, pinned

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "neighbour.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    ORMBRIDGE={"TIMEOUT": 0.5},
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


async def count_users():
    return await User.objects.acount()


async def main():
    async with pinned():
        count = asyncio.create_task(count_users())  # beside the transaction, not inside
        try:
            async with atomic():
                await User.objects.acreate(username="ada")
                print(await count)  # <--
        except PoolTimeout as error:
            print(f"PoolTimeout: {error}")


if __name__ == "__main__":
    Path("neighbour.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
