"""Fixtures of the tests of green functions: they are switched on, on PostgreSQL."""

from importlib.util import find_spec

import pytest

from ormbridge.core import process
from tests.settings import CHOICE
from tests.support.canceller import Outside


@pytest.fixture(autouse=True)
def green(pool_settings):
    """Switch them on for the test. Returns a function that sets more: ``green(MAX_THREADS=1)``."""
    if CHOICE != "postgresql" or find_spec("greenlet") is None:
        pytest.skip("green functions need PostgreSQL, psycopg 3 and greenlet")

    def change(**values):
        pool_settings(**{"GREEN": True, **values})
        process.default_pool()

    change()
    yield change
    change(GREEN=False)


@pytest.fixture
def held(transactional_db):
    """Hold the tables, so that green functions wait for the server."""
    outside = Outside()
    yield outside
    outside.close()
