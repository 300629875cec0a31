"""The page ``howto/workers``: a job of a scheduler."""

import asyncio
from datetime import timedelta

import pytest
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED
from django.contrib.auth.models import User
from django.utils import timezone

from ormbridge import database_sync_to_async, pinned, stats
from tests.core.gate import GUARD
from tests.core.support import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def people(transactional_db):
    """Make ada, who was here today, and bob, who was not for long."""
    for name, days in {"ada": 0, "bob": 60}.items():
        seen = timezone.now() - timedelta(days=days)
        User.objects.create(username=name, last_login=seen)


@pytest.fixture
async def run_now(load_example):
    """Return a function that has the example's running scheduler run its job, or *job*, now."""
    module = load_example("workers/scheduler")
    ended = asyncio.Queue()
    module.scheduler.add_listener(ended.put_nowait, EVENT_JOB_EXECUTED | EVENT_JOB_ERROR)
    main = asyncio.create_task(module.main())
    await until(lambda: module.scheduler.running)

    async def run(job=None):
        (found,) = module.scheduler.get_jobs()
        found.modify(next_run_time=timezone.now(), **({"func": job} if job else {}))
        event = await asyncio.wait_for(ended.get(), GUARD)
        assert event.exception is None
        return event.retval

    yield run
    module.scheduler.shutdown(wait=False)
    main.cancel()
    await asyncio.gather(main, return_exceptions=True)


# The examples.


async def test_scheduler(people, run_now, capsys, recorded):
    """The scheduler awaits the job, and its queries run on a worker."""
    await run_now()
    assert stats().calls == 2  # a-methods
    recorded("workers/scheduler", capsys.readouterr().out)


async def test_jobs_wait_for_a_worker(load_example, gate, pool_settings):
    """With more jobs than workers, the others wait in line."""
    pool_settings(MAX_THREADS=2)
    jobs = [asyncio.create_task(pinned()(database_sync_to_async(gate))()) for _ in range(5)]
    await gate.entered(2)
    assert (stats().threads, stats().waiting) == (2, 3)
    gate.open.set()
    assert set(await asyncio.gather(*jobs)) == {"ormbridge-worker-1", "ormbridge-worker-2"}
