import pytest
from django.contrib.auth.models import User
from django.db import transaction

from ormbridge import atomic, database_sync_to_async

pytestmark = pytest.mark.asyncio


async def sign_up(name, welcome):
    async with atomic():
        await User.objects.acreate(username=name)
        await database_sync_to_async(transaction.on_commit)(lambda: welcome(name))


async def test_is_not_run(async_db):
    welcomed = []
    await sign_up("ada", welcomed.append)
    assert welcomed == []


async def test_is_run_on_request(async_db, async_capture_on_commit_callbacks):
    welcomed = []
    async with async_capture_on_commit_callbacks(execute=True) as callbacks:  # <--
        await sign_up("ada", welcomed.append)
    assert len(callbacks) == 1
    assert welcomed == ["ada"]
