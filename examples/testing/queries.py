import pytest
from django.contrib.auth.models import User

from ormbridge import atomic, database_sync_to_async

pytestmark = pytest.mark.asyncio


async def sign_up(*names):
    async with atomic():
        for name in names:
            await User.objects.acreate(username=name)


async def test_each_name_is_a_query(async_db, async_assert_num_queries):
    async with async_assert_num_queries(4) as queries:  # <--
        await sign_up("ada", "grace")
    assert queries[0]["sql"].startswith("SAVEPOINT")
    assert queries[1]["sql"].startswith("INSERT")
    assert queries[2]["sql"].startswith("INSERT")
    assert queries[3]["sql"].startswith("RELEASE SAVEPOINT")


async def test_on_workers(async_transactional_db, async_assert_max_num_queries):
    count_users = database_sync_to_async(User.objects.count)
    async with async_assert_max_num_queries(2):
        await count_users()
