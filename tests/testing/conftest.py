"""Users in the transaction of a test, and a call that ends while the end of a test waits for it."""

import time
from unittest import mock

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


@pytest.fixture
def late(gate, monkeypatch):
    """Return a gate that opens as soon as the end of a test waits for it."""
    clock = mock.Mock(wraps=time, sleep=lambda seconds: gate.open.set())
    monkeypatch.setattr("ormbridge.testing.ending.time", clock)
    return gate
