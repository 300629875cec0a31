"""A connection that was closed is gone from the server."""

import asyncio

import pytest
from django.db import connection

from ormbridge import database_sync_to_async
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
