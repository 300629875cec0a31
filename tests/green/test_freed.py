"""What green calls, blocks and requests leave behind: nothing."""

import asyncio
import contextvars
import gc
import importlib
import weakref

import pytest
from django.contrib.auth.models import User

from ormbridge import atomic, database_sync_to_async, pinned, stats, stream
from tests.core.support import until
from tests.support import left
from tests.support.blocks import turns
from tests.support.canceller import cancellers, in_context

pytestmark = pytest.mark.django_db(transaction=True)

RUNNER = "ormbridge.green.runner"

variable = contextvars.ContextVar("variable")

count = database_sync_to_async(User.objects.count, green=True)
plain_count = database_sync_to_async(User.objects.count)


class Kept:
    """Something that a context variable keeps."""


async def call():
    await count()


async def request():
    async with in_context(holds=True):
        await count()
        await plain_count()
        await User.objects.acount()


async def socket():
    async with in_context():
        await count()


async def transact():
    async with atomic():
        await count()


async def pin():
    async with pinned():
        await count()


async def read():
    async for _ in stream(User.objects.all(), 1):
        break


async def fail():
    with pytest.raises(LookupError):
        await database_sync_to_async({}.__getitem__, green=True)("missing")


async def give_up():
    task = asyncio.create_task(count())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


WAYS = [call, request, socket, transact, pin, read, fail, give_up]


def alive():
    """Count what there is of calls, leases and what they stand for, after all was freed."""
    gc.collect()
    return left.alive(importlib.import_module(RUNNER).Runner)


async def come_to_rest():
    """Wait until nothing runs any more, and the event loop has forgotten what did."""
    await until(lambda: stats().idle == stats().threads)
    await until(lambda: cancellers() == [])
    await turns()


@pytest.mark.parametrize("do", WAYS)
async def test_nothing_is_left(do, green):
    """After hundreds of them there is no more than after some, nor are there more greenlets."""
    green(MAX_THREADS=3)
    await plain_count()
    counts = []
    for times in (10, 20):
        for _ in range(times):
            await asyncio.gather(*(do() for _ in range(10)))
        await come_to_rest()
        counts.append(alive())
    grown = counts[1] - counts[0]
    assert grown.total() < 10, grown  # a timer knows the context in which it was set
    # As in freed(); the watchdog may have seen one of a test before this one, too.
    await until(lambda: alive()["Runner"] <= 3)


@pytest.mark.parametrize("do", WAYS)
async def test_nothing_is_left_to_the_collector(do, green):
    """Nor does any of it keep itself: what has ended is freed at once."""
    green(MAX_THREADS=3)
    await plain_count()
    await do()
    await come_to_rest()
    before = alive()
    gc.disable()
    try:
        for _ in range(10):
            await asyncio.gather(*(do() for _ in range(10)))
        await come_to_rest()
        grown = left.alive(importlib.import_module(RUNNER).Runner) - before
    finally:
        gc.enable()
    assert grown.total() < 10, grown  # as above


async def freed(kept):
    """Wait until none of *kept* is left: the watchdog knows for a moment what it saw."""
    await until(lambda: gc.collect() is not None and not any(ref() for ref in kept))


async def keeping(kept, do):
    """*do*, with a value in the context; add a reference to that to *kept*."""
    value = Kept()
    kept.append(weakref.ref(value))
    variable.set(value)
    del value
    await do()


@pytest.mark.parametrize("do", [way for way in WAYS if way is not give_up])  # which sets a timer
async def test_context_is_freed(do, green):
    """The variables of a task end with it: no idle greenlet, worker or watch has them."""
    green(MAX_THREADS=1)
    await plain_count()
    kept = []
    for _ in range(3):
        await asyncio.create_task(keeping(kept, do))
    await come_to_rest()
    await freed(kept)


async def test_context_of_the_first_call_is_freed(green):
    """Nor has what begins with the first call of a loop, and lasts as long as that."""
    green(MAX_THREADS=1)
    kept = []
    await asyncio.create_task(keeping(kept, request), context=contextvars.Context())
    await come_to_rest()
    await freed(kept)
