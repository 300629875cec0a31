from django.contrib.auth.models import User
from django.db import connection
from django_tenants.utils import schema_context

from ormbridge import database_sync_to_async, pinned

names = User.objects.order_by("username").values_list("username", flat=True)


@database_sync_to_async
def names_in(schema):
    with schema_context(schema):  # <--
        return list(names.all())


async def names_one_by_one(schema):
    async with pinned():
        await database_sync_to_async(lambda: connection.set_schema(schema))()  # <--
        return [name async for name in names.all()]
