"""A connection that a pool of somebody else's hands out: to close it is no error."""

import pytest
from django.contrib.auth.models import User
from django.db import connection

from ormbridge import database_sync_to_async, stats

pytestmark = pytest.mark.django_db(transaction=True)


class Proxy:
    """Stands for a connection, and knows nothing any more once it is closed, as SQLAlchemy's."""

    def __init__(self, raw):
        self.__dict__["raw"] = raw

    def __getattr__(self, name):
        return getattr(self.__dict__["raw"], name)

    def __setattr__(self, name, value):
        setattr(self.__dict__["raw"], name, value)

    def close(self):
        """Give the connection back."""
        self.__dict__["raw"].close()
        self.__dict__["raw"] = None


def use_a_proxy(close):
    connection.ensure_connection()
    connection.connection = Proxy(connection.connection)
    if close:
        connection.close()


@pytest.mark.parametrize("close", [True, False], ids=["closed by the function", "not closed"])
async def test_connection_that_is_a_proxy(connection_settings, pool_settings, caplog, close):
    """It is closed, by the function or after the call, and nobody hears of it."""
    pool_settings(MAX_THREADS=1)
    connection_settings(CONN_MAX_AGE=0)
    await database_sync_to_async(use_a_proxy)(close)
    assert await database_sync_to_async(User.objects.count)() == 0
    assert (caplog.text, stats().discarded) == ("", 0)
