from django.contrib.auth.models import Permission, User
from django.db.models import aprefetch_related_objects

from ormbridge import database_sync_to_async


async def along_a_foreign_key():
    permission = await Permission.objects.select_related("content_type").afirst()
    return permission.content_type.model


async def along_a_many_to_many_relation():
    users = [user async for user in User.objects.prefetch_related("groups")]
    return {user.username: [group.name for group in user.groups.all()] for user in users}


async def afterwards(users):
    await aprefetch_related_objects(users, "groups")
    return {user.username: [group.name for group in user.groups.all()] for user in users}


@database_sync_to_async
def on_a_worker(username):  # here it may be lazy
    return [group.name for group in User.objects.get(username=username).groups.all()]
