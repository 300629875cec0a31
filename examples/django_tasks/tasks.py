from django.contrib.auth.models import User
from django.tasks import task

from ormbridge import atomic


@task
async def greet(username):
    user = await User.objects.aget(username=username)
    return f"Hello, {user.username}"


async def sign_up(username):
    async with atomic():
        await User.objects.acreate(username=username)
        return await greet.aenqueue(username)  # in the transaction, with a database backend  # <--
