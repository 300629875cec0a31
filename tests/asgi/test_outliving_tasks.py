"""Tasks that outlive their request."""

import asyncio

import pytest
from asgiref.sync import sync_to_async
from channels.db import database_sync_to_async as channels_database_sync_to_async
from django.contrib.auth.models import User
from django.db import transaction
from django.http import HttpResponse

from ormbridge import (
    PoolTimeout,
    database_sync_to_async,
    stats,
    stream,
)
from tests.core.support import no_worker_is_leased, set_timeout, thread_name
from tests.support.applications import SyncOnly  # noqa: F401 - found by its name
from tests.support.http import get


@pytest.mark.parametrize("middleware", [(), (f"{__name__}.SyncOnly",)])
async def test_task_that_outlives_its_request(serve, pool_settings, middleware):
    """A task goes on after its request, on the pool: a lease for each call, also below a frame."""
    pool_settings(MAX_THREADS=1)
    go_on = asyncio.Event()
    tasks = []

    async def outlive():
        await go_on.wait()
        names = [
            await sync_to_async(thread_name)(),
            await channels_database_sync_to_async(thread_name)(),
            await database_sync_to_async(thread_name)(),
        ]
        return names, len(stats().holders)

    async def view(request):
        await sync_to_async(thread_name)()
        tasks.append(asyncio.create_task(outlive()))
        return HttpResponse()

    await get(serve(view, *middleware))
    await no_worker_is_leased()
    go_on.set()
    assert await tasks[0] == (["ormbridge-worker-1"] * 3, 0)


@pytest.mark.django_db(transaction=True)
async def test_iteration_after_a_stream_in_a_task_that_outlives_its_request(serve):
    """Such a task keeps the worker of an aiterator() after a stream() that has ended, too."""
    tasks = []

    async def outlive():
        await go_on.wait()
        async for _ in stream(User.objects.order_by("pk")):
            pass
        users = User.objects.order_by("pk").aiterator(chunk_size=2)
        return [len(stats().holders) async for _ in users]

    async def view(request):
        tasks.append(asyncio.create_task(outlive()))
        return HttpResponse()

    go_on = asyncio.Event()
    users = [User(username=str(number)) for number in range(5)]
    await database_sync_to_async(User.objects.bulk_create)(users)
    await get(serve(view))
    go_on.set()
    assert await tasks[0] == [1, 1, 1, 1, 0]


ROLLED_BACK = "connection 'default' discarded: the call left a transaction open; it was rolled back"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("begin_after", [False, True])
async def test_transaction_of_a_task_ends_with_the_request(serve, begin_after, caplog):
    """What a task that lives on has left in a transaction is rolled back, and that is logged."""
    go_on, begun = asyncio.Event(), asyncio.Event()
    tasks = []

    def begin():
        transaction.atomic().__enter__()
        User.objects.create(username="ada")

    async def outlive():
        if begin_after:
            await go_on.wait()
        await sync_to_async(begin)()
        begun.set()
        await go_on.wait()
        return await User.objects.acount()

    async def view(request):
        tasks.append(asyncio.create_task(outlive()))
        if not begin_after:
            await begun.wait()
        return HttpResponse()

    assert await get(serve(view)) == "200"
    if not begin_after:
        await no_worker_is_leased()
    go_on.set()
    assert await tasks[0] == 0
    await no_worker_is_leased()
    assert [record.getMessage() for record in caplog.records] == [ROLLED_BACK]


async def test_error_reaches_the_task_that_outlives_its_request(serve, gate, pool_settings):
    """Below a dead frame, what the function raises and a PoolTimeout both reach the caller."""
    pool_settings(MAX_THREADS=1)
    go_on = asyncio.Event()
    tasks = []

    def fail():
        raise ValueError("of the function")

    async def outlive():
        await go_on.wait()
        with pytest.raises(ValueError, match="of the function"):
            await sync_to_async(fail)()
        holder = asyncio.create_task(database_sync_to_async(gate)())
        await gate.entered()
        set_timeout(1e-3)
        with pytest.raises(PoolTimeout):
            await sync_to_async(fail)()
        gate.open.set()
        await holder
        return "done"

    async def view(request):
        tasks.append(asyncio.create_task(outlive()))
        return HttpResponse()

    await get(serve(view, f"{__name__}.SyncOnly"))
    await no_worker_is_leased()
    go_on.set()
    assert await tasks[0] == "done"
