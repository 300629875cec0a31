import asyncio

from django.contrib.auth.models import User
from django.core.management.base import BaseCommand

from ormbridge import pinned


@pinned()  # <--
async def greet(username):
    user = await User.objects.aget(username=username)
    user.first_name = username.title()
    await user.asave(update_fields=["first_name"])
    return f"Hello, {user.first_name}"


class Command(BaseCommand):
    async def work(self, usernames):
        async with asyncio.TaskGroup() as group:
            jobs = [group.create_task(greet(each)) for each in usernames]
        for job in jobs:
            self.stdout.write(job.result())

    def add_arguments(self, parser):
        parser.add_argument("usernames", nargs="+")

    def handle(self, *args, usernames, **options):
        asyncio.run(self.work(usernames))
