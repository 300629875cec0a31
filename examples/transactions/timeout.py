import asyncio
from pathlib import Path

import django
from django.conf import settings

from ormbridge import atomic

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "timeout.sqlite3"}},
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
)
django.setup()

from django.contrib.auth.models import User
from django.core.management import call_command


async def main():
    try:
        async with asyncio.timeout(0.1), atomic():
            await User.objects.acreate(username="ada")
            await asyncio.sleep(30)  # another service does not answer
    except TimeoutError:
        print(f"timed out, {await User.objects.acount()} users")


if __name__ == "__main__":
    Path("timeout.sqlite3").unlink(missing_ok=True)
    call_command("migrate", verbosity=0)
    asyncio.run(main())
