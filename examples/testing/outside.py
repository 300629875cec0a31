import asyncio

import pytest
from django.contrib.auth.models import User


async def count_users():
    return await asyncio.to_thread(User.objects.count)  # <--


@pytest.mark.asyncio
async def test_count(async_db):
    await User.objects.acreate(username="ada")
    assert await count_users() == 1
