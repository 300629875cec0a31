"""Fixtures of the tests of requests and connections."""

import pytest

from ormbridge.asgi.context import LeaseContext


@pytest.fixture
async def context():
    """Return a context that holds, as an HTTP request's does."""
    return LeaseContext("GET /", holds=True, is_request=True)
