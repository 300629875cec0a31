import asyncio
from pathlib import Path

import django
from asgiref.sync import sync_to_async
from django.conf import settings
from django.db import OperationalError, connection

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "left.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


@sync_to_async
def execute(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)


async def main():
    await User.objects.abulk_create(User(username=f"user {number}") for number in range(10))
    users = User.objects.order_by("username").aiterator(chunk_size=2)
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
