import asyncio
from pathlib import Path

import django
from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "tuples.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


async def main():
    await User.objects.acreate(username="ada")
    users = User.objects.values_list("username", "email")
    try:
        async for username, _ in users.aiterator():
            print(username)
    except SynchronousOnlyOperation as error:
        print(f"SynchronousOnlyOperation: {error}")


if __name__ == "__main__":
    Path("tuples.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
