import asyncio

import django
from django.conf import settings
from django.core.exceptions import SynchronousOnlyOperation
from django.db import transaction

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
)
django.setup()


async def async_with():
    async with transaction.atomic():
        pass


async def plain_with():
    with transaction.atomic():
        pass


async def main():
    for attempt in (async_with, plain_with):
        try:
            await attempt()
        except (TypeError, SynchronousOnlyOperation) as error:
            print(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    asyncio.run(main())
