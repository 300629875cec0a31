import asyncio

import django
from django.conf import settings

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "greeting.sqlite3",
        }
    },
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command

from ormbridge import database_sync_to_async


def get_name():
    return User.objects.all()[0].username


async def main():
    username = await database_sync_to_async(get_name)()  # <--
    print(f"Hello, {username}")


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    User.objects.get_or_create(username="ada")
    asyncio.run(main())
