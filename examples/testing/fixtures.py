import pytest
import pytest_asyncio
from django.contrib.auth.models import Group, User

from ormbridge import atomic, database_sync_to_async

pytestmark = pytest.mark.asyncio


@pytest.fixture
def ada(db):  # <--
    return User.objects.create(username="ada")


@pytest_asyncio.fixture
async def team(async_db, ada):  # <--
    team = await Group.objects.acreate(name="team")
    await ada.groups.aadd(team)
    return team


@database_sync_to_async
def members(team):
    return [user.username for user in team.user_set.order_by("username")]


async def test_member_joins(team):
    async with atomic():
        grace = await User.objects.acreate(username="grace")
        await grace.groups.aadd(team)
    assert await members(team) == ["ada", "grace"]


async def test_member_leaves(team, ada):
    await ada.groups.aclear()
    assert await members(team) == []
