"""Users in the transaction of a test."""

import pytest
from django.contrib.auth.models import User


@pytest.fixture
def bob(db):
    """Make a user in the transaction of the test, on its own thread."""
    return User.objects.create(username="bob")


@pytest.fixture
async def eve(async_db):
    """Make a user in the transaction of the test, from async code."""
    return await User.objects.acreate(username="eve")
