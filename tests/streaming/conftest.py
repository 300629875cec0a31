"""Fixtures of the tests of streams."""

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.urls import path

from ormbridge import (
    BridgeMiddleware,
)
from tests.support.rows import Watch, make_users


@pytest.fixture
def watch(transactional_db):
    """Make ten users, and return what watches the cursors over them."""
    make_users()
    return Watch()


@pytest.fixture
def site(settings):
    """Return a function that serves *view* under the middleware."""

    def serve_view(view, *middleware):
        settings.ROOT_URLCONF = (path("", view),)
        settings.MIDDLEWARE = [f"{__name__}.{each.__name__}" for each in middleware]
        return BridgeMiddleware(ASGIHandler())

    return serve_view
