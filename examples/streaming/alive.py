import asyncio
import weakref
from pathlib import Path

import django
from django.conf import settings

from ormbridge import stream

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "alive.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command
from django.db.models.signals import post_init

alive = weakref.WeakSet()


def note(instance, **kwargs):
    alive.add(instance)


async def most_alive(users):
    most = 0
    async for _ in users:
        most = max(most, len(alive))
    return most


async def main():
    await User.objects.abulk_create(User(username=f"user {number}") for number in range(10_000))
    post_init.connect(note, sender=User)
    users = User.objects.all()
    print("stream(): 4000 or less is", await most_alive(stream(users)) <= 4000)  # <--
    print("async for:", await most_alive(users))


if __name__ == "__main__":
    Path("alive.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
