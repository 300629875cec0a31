import asyncio
from pathlib import Path

import django
from django.conf import settings

from ormbridge import atomic

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "generator.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


async def names():
    async with atomic():  # <--
        async for user in User.objects.all():
            yield user.username


async def main():
    try:
        print([name async for name in names()])
    except RuntimeError as error:
        print(f"RuntimeError: {error}")


if __name__ == "__main__":
    Path("generator.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
