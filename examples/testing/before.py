import pytest
from django.contrib.auth.models import User

pytestmark = [pytest.mark.asyncio, pytest.mark.django_db]  # <--


async def test_one():
    await User.objects.acreate(username="ada")
    assert await User.objects.acount() == 1


async def test_two():
    assert await User.objects.acount() == 0
