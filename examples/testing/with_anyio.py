import anyio
import pytest
from django.contrib.auth.models import User

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def ada(async_db):  # <--
    return await User.objects.acreate(username="ada")


async def test_tasks(ada):
    async with anyio.create_task_group() as tasks:
        for name in ("grace", "joan"):
            tasks.start_soon(create_user, name)
    assert await User.objects.acount() == 3


async def create_user(name):
    await User.objects.acreate(username=name)
