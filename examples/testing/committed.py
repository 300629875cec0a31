import pytest
from django.contrib.auth.models import User
from django.db import transaction

from ormbridge import atomic, database_sync_to_async

pytestmark = pytest.mark.asyncio


async def sign_up(name, welcome):
    async with atomic():
        await User.objects.acreate(username=name)
        await database_sync_to_async(transaction.on_commit)(lambda: welcome(name))


async def test_welcomes_after_the_commit(async_transactional_db):  # <--
    welcomed = []
    await sign_up("ada", welcomed.append)
    assert welcomed == ["ada"]


async def test_starts_with_empty_tables(async_transactional_db):
    assert await User.objects.acount() == 0
