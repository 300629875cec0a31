"""A connection that was closed is gone from the server, and one that broke from its worker."""

import asyncio
from contextlib import suppress

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group, User
from django.db import connection

from ormbridge import atomic, database_sync_to_async, pinned, stats
from tests.settings import CHOICE

pytestmark = pytest.mark.django_db(transaction=True)


if CHOICE == "postgresql":  # psycopg tells when the server has closed its end

    @pytest.mark.parametrize("left_open", [False, True])
    async def test_closed_connection_is_gone_from_the_server(connection_settings, left_open):
        """A worker goes on only when the server counts its closed connection no more."""
        connection_settings(CONN_MAX_AGE=0)

        def use():
            connection.ensure_connection()
            if left_open:
                connection.set_autocommit(False)
                connection.cursor().execute("SELECT 1")
            return connection.connection.info.backend_pid

        def alive():
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pid FROM pg_stat_activity")
                    return {pid for (pid,) in cursor.fetchall()}
            finally:
                connection.close()

        for _ in range(50):
            pid = await database_sync_to_async(use)()
            assert pid not in await asyncio.to_thread(alive)

    def break_unseen():
        """Break the connection so that its driver knows, and Django does not: as a cursor ends."""
        connection.ensure_connection()
        raw = connection.connection
        with suppress(Exception):
            raw.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return raw.closed

    async def break_and_go_on():
        assert await database_sync_to_async(break_unseen)()
        async with atomic():
            return await database_sync_to_async(Group.objects.count)()

    async def break_and_go_on_pinned():
        async with pinned():
            return await break_and_go_on()

    @pytest.mark.parametrize("calls", [break_and_go_on, break_and_go_on_pinned])
    async def test_connection_that_broke_unseen_is_replaced(calls):
        """No other call meets it, whether its lease has ended or goes on."""
        assert await calls() == 0

    def test_connection_of_a_frame_that_broke_unseen_is_replaced():
        """Nor does one on the thread of a synchronous frame."""
        assert async_to_sync(break_and_go_on)() == 0


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
