import asyncio
import threading

import django
from django.conf import settings
from django.db.backends.signals import connection_created

from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "users.sqlite3",
            "CONN_MAX_AGE": 60,  # <--
        }
    },
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    ORMBRIDGE={"MAX_THREADS": 4},  # <--
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command

opened = []
all_four_are_running = threading.Barrier(4)


@database_sync_to_async  # <--
def count_users():
    all_four_are_running.wait(timeout=30)
    return User.objects.count()


async def main():
    connection_created.connect(lambda **kwargs: opened.append(kwargs), weak=False)
    calls = [count_users() for _ in range(20)]
    await asyncio.gather(*calls)
    print(f"{len(calls)} calls opened {len(opened)} connections")


if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    asyncio.run(main())
