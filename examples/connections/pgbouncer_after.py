import asyncio

import django
from django.conf import settings
from django.db import connection

from ormbridge import atomic, database_sync_to_async

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "CONN_MAX_AGE": 60,
            "DISABLE_SERVER_SIDE_CURSORS": True,
        }
    },
    ORMBRIDGE={"MAX_THREADS": 20},
)
django.setup()


@database_sync_to_async
def set_tenant(tenant):
    with connection.cursor() as cursor:
        cursor.execute("SELECT set_config('app.tenant', %s, true)", [tenant])  # SET LOCAL


@database_sync_to_async
def get_tenant():
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('app.tenant')")
        return cursor.fetchone()[0]


async def report(tenant):
    async with atomic():  # <--
        await set_tenant(tenant)
        return await get_tenant() == tenant


async def main():
    right = await asyncio.gather(*[report(f"tenant {number}") for number in range(20)])
    print(f"{sum(right)} of 20 reports see their own tenant")


if __name__ == "__main__":
    asyncio.run(main())
