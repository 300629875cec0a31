import asyncio
import contextlib
import contextvars
import shutil

import django
from django.conf import settings
from django.core.management import call_command

from ormbridge import atomic

# [router]
_primary = contextvars.ContextVar("primary", default=False)


@contextlib.contextmanager
def on_primary():
    token = _primary.set(True)
    try:
        yield
    finally:
        _primary.reset(token)


class ReplicaRouter:
    def db_for_read(self, model, **hints):
        return "default" if _primary.get() else "replica"  # <--

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, one, other, **hints):
        return True

    def allow_migrate(self, db, app_label, **hints):
        return db == "default"


# [/router]
settings.configure(
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "primary.sqlite3"},
        "replica": {"ENGINE": "django.db.backends.sqlite3", "NAME": "replica.sqlite3"},
    },
    DATABASE_ROUTERS=["__main__.ReplicaRouter"],
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()
call_command("migrate", verbosity=0)

from django.contrib.auth.models import User


def replicate():
    shutil.copy("primary.sqlite3", "replica.sqlite3")


async def names():
    return [user.username async for user in User.objects.all()]


async def main():
    replicate()
    with on_primary():
        async with atomic():
            await User.objects.acreate(username="ada")
            print("in the block:          ", await names())
        print("on_primary(), after it:", await names())
    print("the replica, at first: ", await names())
    replicate()
    print("when it has caught up: ", await names())


if __name__ == "__main__":
    asyncio.run(main())
