import asyncio

import django
from channels.db import database_sync_to_async
from django.conf import settings
from django.db.backends.signals import connection_created

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "users.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command

opened = []


def count_users():
    return User.objects.count()


async def main():
    connection_created.connect(lambda **kwargs: opened.append(kwargs), weak=False)
    calls = [database_sync_to_async(count_users, thread_sensitive=False)() for _ in range(20)]
    await asyncio.gather(*calls)
    print(f"{len(calls)} calls opened {len(opened)} connections")


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    asyncio.run(main())
