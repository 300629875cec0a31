"""Backends that are killed under green calls: nothing mixes, no worker is lost, the bound holds."""

import asyncio
import random
import threading
from contextlib import suppress

import pytest
from django.contrib.auth.models import Group
from django.db import (
    DatabaseError,
    InterfaceError,
    OperationalError,
    connection,
    connections,
    transaction,
)

from ormbridge import atomic, database_sync_to_async, stats
from tests.core.gate import GUARD
from tests.core.support import SESSIONS, Sampler, until
from tests.support.canceller import in_context

pytestmark = pytest.mark.django_db(transaction=True)

KILLS, CALLERS, WORKERS = 40, 20, 4


class Killer(threading.Thread):
    """Kills any backend of the pool's, again and again, whenever one more call was right."""

    def __init__(self, chance):
        super().__init__()
        self.chance = chance
        self.callers = Callers(self)
        self.kills = 0
        self.connected, self.go = threading.Event(), threading.Event()

    def run(self):
        right = 0
        with connection.cursor() as cursor:
            self.connected.set()
            self.go.wait(GUARD)
            while self.kills < KILLS:
                cursor.execute(f"{SESSIONS['postgresql']} AND application_name = 'pool'")
                pids = [pid for (pid,) in cursor.fetchall()]
                if pids and self.callers.right > right:
                    right = self.callers.right
                    cursor.execute("SELECT pg_terminate_backend(%s)", [self.chance.choice(pids)])
                    self.kills += 1
                cursor.execute("SELECT pg_sleep(0.02)")
        connection.close()


def select(number):
    """Return *number*, from the server, after a while."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT %s, pg_sleep(0.001)", [number])
        return cursor.fetchone()[0]


def read_names():
    """Return what was written, by words, with a connection that nobody has killed."""
    names = [name.split() for name in Group.objects.values_list("name", flat=True)]
    connection.close()
    return names


class Callers:
    """Tasks that make calls until no more backends are killed."""

    def __init__(self, killer):
        self.killer = killer
        self.right, self.failed, self.committed = 0, 0, set()
        self.select = database_sync_to_async(select, green=True)

    async def in_turn(self, number):
        return await self.select(number)

    async def in_request(self, number):
        async with in_context(holds=True):
            first = await self.select(number)
            second = await database_sync_to_async(select)(number)
            return first if first == second == await self.select(number) else (first, second)

    async def in_transaction(self, number):
        async with atomic():
            await Group.objects.acreate(name=f"{number} first")
            selected = await self.select(number)
            await Group.objects.acreate(name=f"{number} second")
        self.committed.add(number)
        return selected

    async def call(self, number):
        chance = random.Random(number)
        while self.killer.is_alive():
            number += CALLERS
            way = chance.choice([self.in_turn, self.in_request, self.in_transaction])
            try:
                assert await way(number) == number
                self.right += 1
            except (DatabaseError, InterfaceError):
                self.failed += 1


async def test_backends_are_killed(green, connection_settings):
    """Who is hit gets an error, all others are right, and whole transactions are there."""
    sampler, killer = Sampler(), Killer(random.Random(1))
    killer.start()
    await until(killer.connected.is_set)
    sampler.start()
    options = connections.settings["default"]["OPTIONS"]
    connection_settings(OPTIONS={**options, "application_name": "pool"})
    green(MAX_THREADS=WORKERS, TIMEOUT=GUARD)
    callers = killer.callers
    killer.go.set()
    try:
        async with asyncio.timeout(GUARD):
            await asyncio.gather(*map(callers.call, range(CALLERS)))
    finally:
        killer.join(GUARD)
        sampler.stop.set()
        sampler.join(GUARD)
    assert killer.kills == KILLS
    assert 0 < callers.failed <= KILLS <= callers.right
    assert sampler.most <= WORKERS
    await until(lambda: stats().idle == stats().threads)
    assert stats().threads == WORKERS
    assert (stats().waiting, stats().holders, stats().timeouts) == (0, (), 0)

    written = await asyncio.to_thread(read_names)
    first, second = (
        {int(number) for number, part in written if part == each} for each in ("first", "second")
    )
    assert first == second
    assert callers.committed <= first


def begin_on_a_broken_connection():
    """Begin a transaction where the driver knows that the connection broke, and Django does not."""
    connection.ensure_connection()
    raw = connection.connection
    while not raw.closed:
        with suppress(Exception):
            raw.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with transaction.atomic():
        pass


@pytest.mark.parametrize("runs_green", [False, True])
async def test_broken_connection_is_an_operational_error(runs_green):
    """On threads and green it is the error that code looks for to try again."""
    begin = database_sync_to_async(begin_on_a_broken_connection, green=runs_green)
    with pytest.raises(OperationalError, match="the connection is lost"):
        await begin()
