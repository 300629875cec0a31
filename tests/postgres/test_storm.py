"""A storm of cancelled calls: the others are right, and all is whole."""

# What a block does, and raises, is more than one statement.

import asyncio
import os
import random
import threading

import pytest
from django.contrib.auth.models import Group, User
from django.db import connection
from django.db.models.expressions import RawSQL

from ormbridge import (
    atomic,
    database_sync_to_async,
    stats,
)
from ormbridge.postgres import canceller as canceller_module
from tests.core.gate import GUARD, apart
from tests.core.support import Sampler, until
from tests.support.canceller import cancellers, in_context, postgresql

pytestmark = pytest.mark.django_db(transaction=True)


# The storm

CALLS = 10_000


CALLERS = 10


WORKERS = 5


# Another storm, such as one that failed: ORMBRIDGE_TEST_SEED=7. Its number is in the test's id.
SEEDS = [int(seed) for seed in os.environ.get("ORMBRIDGE_TEST_SEED", "1").split(",")]


class Storm:
    """Calls of every kind, each of which returns its number."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.cancelled = 0
        #: Transactions that were begun, and those that were not cancelled.
        self.begun, self.committed = set(), set()

    def select(self, number, seconds):
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s FROM pg_sleep(%s)", [number, seconds])
            return cursor.fetchone()[0]

    async def bridge(self, number, seconds):
        return await database_sync_to_async(self.select)(number, seconds)

    async def method(self, number, seconds):
        slept = RawSQL("SELECT %s FROM pg_sleep(%s)", [number, seconds])
        return (await User.objects.annotate(slept=slept).aget(username="known")).slept

    async def socket(self, number, seconds):
        async with in_context():
            return await self.method(number, seconds)

    async def request(self, number, seconds):
        async with in_context(holds=True):
            assert await self.method(number, 0) == number
            return await self.bridge(number, seconds)

    async def transact(self, number, seconds):
        self.begun.add(number)
        async with atomic():
            await Group.objects.acreate(name=f"{number} first")
            assert await self.bridge(number, seconds) == number
            await Group.objects.acreate(name=f"{number} second")
        self.committed.add(number)
        return number

    async def one(self, number):
        """Make a call of any kind; one in two is cancelled after any time."""
        chance = self.chance
        kind = chance.choices(
            (self.bridge, self.socket, self.request, self.transact),
            (4, 2, 2, 1),
        )[0]
        task = asyncio.create_task(kind(number, chance.choice([0, 0, 0.002, 0.01])))
        if chance.random() < 0.5:
            if chance.random() < 0.2:
                for _ in range(chance.randrange(5)):
                    await asyncio.sleep(0)
            else:
                await asyncio.sleep(chance.random() * 0.01)
            task.cancel()
        try:
            assert await task == number
        except asyncio.CancelledError:
            self.cancelled += 1

    async def caller(self, first):
        for number in range(first, CALLS, CALLERS):
            await self.one(number)


@postgresql
@pytest.mark.parametrize("seed", SEEDS)
async def test_storm(pool_settings, monkeypatch, seed):
    """Of 10,000 calls half are cancelled at any time: the others are right, and all is whole."""
    pool_settings(MAX_THREADS=WORKERS)
    monkeypatch.setattr(canceller_module, "PAUSE", 0.0)
    sent = []
    send = canceller_module._cancel_statement

    def count_and_send(raw, timeout):
        sent.append(raw)
        send(raw, timeout)

    monkeypatch.setattr(canceller_module, "_cancel_statement", count_and_send)
    storm = Storm(seed)
    sampler = Sampler()
    sampler.start()
    try:
        await database_sync_to_async(User.objects.create)(username="known")
        async with asyncio.timeout(3 * GUARD):
            await asyncio.gather(*map(storm.caller, range(CALLERS)))
            await until(lambda: stats().idle == stats().threads)
            await until(lambda: cancellers() == [])
    finally:
        sampler.stop.set()
        sampler.join(GUARD)
    # Both halves were large, and many statements were hit.
    assert 0.1 * CALLS < storm.cancelled < 0.6 * CALLS
    assert len(sent) > 100
    # The pool is whole.
    assert (stats().waiting, stats().holders, stats().timeouts) == (0, (), 0)
    assert sampler.most <= WORKERS
    together = threading.Barrier(WORKERS)
    meet = database_sync_to_async(lambda: apart(together.wait, GUARD))
    await asyncio.gather(*(meet() for _ in range(WORKERS)))
    # A transaction is there as a whole or not at all, and those that were not cancelled are there.
    names = await database_sync_to_async(
        lambda: [name.split() for name in Group.objects.values_list("name", flat=True)]
    )()
    first, second = (
        {int(number) for number, part in names if part == each} for each in ("first", "second")
    )
    assert first == second
    assert storm.committed <= first <= storm.begun
