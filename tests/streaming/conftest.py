"""Fixtures of the tests of streams."""

import pytest

from tests.support.rows import Watch, make_users


@pytest.fixture
def watch(transactional_db):
    """Make ten users, and return what watches the cursors over them."""
    make_users()
    return Watch()
