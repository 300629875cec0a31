import pytest
from django.contrib.auth.models import User


@pytest.mark.asyncio
@pytest.mark.django_db(transaction=True)
async def test_count():
    assert await User.objects.acount() == 0
