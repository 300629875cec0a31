import asyncio

import pytest
from django.contrib.auth.models import User
from django.core.management import BaseCommand, call_command

from ormbridge import atomic, database_sync_to_async


class Command(BaseCommand):  # yours is in management/commands/
    def handle(self, **options):
        asyncio.run(sign_up("ada", "grace"))  # <--


async def sign_up(*names):
    async with atomic():
        for name in names:
            await User.objects.acreate(username=name)


def test_command(async_db):
    call_command(Command())
    assert User.objects.count() == 2


@pytest.mark.asyncio
async def test_command_in_an_async_test(async_db):
    await database_sync_to_async(call_command)(Command())
    assert await User.objects.acount() == 2
