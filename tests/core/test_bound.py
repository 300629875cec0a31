"""The bound on connections, seen by the server; and a storm in which nothing may get lost."""

import asyncio
import random

import pytest
from django.contrib.auth.models import User

from ormbridge.core.bridge import database_sync_to_async
from ormbridge.core.errors import PoolTimeout
from ormbridge.core.process import stats
from tests.core.gate import GUARD, block_until
from tests.core.support import CHOICE, SESSIONS, Sampler, set_timeout, until

pytestmark = pytest.mark.django_db(transaction=True)


if CHOICE in SESSIONS:  # SQLite has no server to ask

    @pytest.mark.parametrize("bound", [1, 10])
    def test_server_never_sees_more_connections_than_the_bound(monkeypatch, bound):
        """Under load the database server never sees more connections than ASGI_THREADS."""
        monkeypatch.setenv("ASGI_THREADS", str(bound))
        sampler = Sampler()

        def count():
            User.objects.count()
            block_until(lambda: sampler.most >= bound)  # so that all come to be connected at once

        async def load():
            async def caller():
                for _ in range(20):
                    await database_sync_to_async(count)()

            async with asyncio.TaskGroup() as tasks:
                for _ in range(50):
                    tasks.create_task(caller())

        sampler.start()
        try:
            asyncio.run(load())
        finally:
            sampler.stop.set()
            sampler.join(GUARD)
        assert stats().calls == 1000
        assert sampler.samples > 1
        assert sampler.most == bound

    def test_who_was_there_before_is_not_counted():
        """A session that ends, maybe slowly, is no connection of a worker."""
        User.objects.count()
        sampler = Sampler()

        def count():
            User.objects.count()
            block_until(lambda: sampler.samples > seen + 1)  # once from beginning to end

        sampler.start()
        try:
            seen = sampler.samples
            asyncio.run(database_sync_to_async(count)())
        finally:
            sampler.stop.set()
            sampler.join(GUARD)
        assert sampler.most == 1


class FailureError(Exception):
    """What a call of the storm raises."""


async def test_storm_of_cancelled_calls(pool_settings):
    """Of thousands of calls, half cancelled at random, every result is right, none is lost."""
    pool_settings(MAX_THREADS=3, TIMEOUT=GUARD)
    chance = random.Random(20261122)
    started, finished = set(), set()

    def call(number):
        started.add(number)
        if number % 7 == 0:
            raise FailureError(number)
        finished.add(number)
        return number * 2

    async def one(number, give_up):
        task = asyncio.ensure_future(database_sync_to_async(call)(number))
        if give_up:
            for _ in range(chance.randrange(5)):
                await asyncio.sleep(0)
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return "cancelled"
        except FailureError as failure:
            return failure.args[0]

    async def some(numbers):
        return [(n, await one(n, give_up=chance.random() < 0.5)) for n in numbers]

    parts = [range(start, 5000, 50) for start in range(50)]
    async with asyncio.timeout(GUARD * 3):
        results = await asyncio.gather(*map(some, parts))
        await until(lambda: stats().idle == stats().threads)
    outcomes = dict(pair for part in results for pair in part)
    assert len(outcomes) == 5000
    for number, outcome in outcomes.items():
        if outcome == "cancelled":
            continue
        assert number in started
        assert outcome == (number if number % 7 == 0 else number * 2)
    # Whatever started also counts as a call, and nothing that never started does.
    assert stats().calls == len(started)
    assert 0 < len(started) < 5000
    assert (stats().waiting, stats().holders) == (0, ())
    assert stats().threads <= 3


async def test_storm_of_time_outs(pool_settings):
    """With far too little time to wait, calls either run or time out, and the pool stays whole."""
    pool_settings(MAX_THREADS=2, TIMEOUT=1e-4)
    ran = []
    outcomes = await asyncio.wait_for(
        asyncio.gather(
            *[database_sync_to_async(ran.append)(number) for number in range(2000)],
            return_exceptions=True,
        ),
        GUARD,
    )
    timed_out = [outcome for outcome in outcomes if isinstance(outcome, PoolTimeout)]
    assert len(ran) + len(timed_out) == 2000
    assert stats().timeouts == len(timed_out)
    set_timeout(GUARD)  # both workers may still be busy with the last of them
    assert await database_sync_to_async(len)("abc") == 3
    assert stats().waiting == 0
