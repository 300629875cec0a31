import asyncio

import pytest
from django.contrib.auth.models import User


async def count_users():
    return await asyncio.to_thread(User.objects.count)


@pytest.mark.asyncio
async def test_count(async_transactional_db, no_database_leaks):  # <--
    assert await count_users() == 0
