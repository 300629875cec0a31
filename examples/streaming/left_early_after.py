import asyncio
from pathlib import Path

import django
from django.conf import settings
from django.db import OperationalError, connection

from ormbridge import database_sync_to_async, stream  # <--

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "left.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


@database_sync_to_async
def execute(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)


async def main():
    await User.objects.abulk_create(User(username=f"user {number}") for number in range(10))
    users = stream(User.objects.order_by("username"), chunk_size=2)  # <--
    async for user in users:
        print(user.username)
        break
    try:
        await execute("VACUUM")
        print("nothing is open")
    except OperationalError as error:
        print(f"OperationalError: {error}")


if __name__ == "__main__":
    Path("left.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
