"""The system starts no thread, and a green call has one of a worker."""

import asyncio
import importlib
import threading
import time

import pytest
from django.contrib.auth.models import User

from ormbridge import PoolTimeout, database_sync_to_async, stats
from tests.core.support import no_worker_is_leased, run_python
from tests.support.canceller import in_context

pytestmark = pytest.mark.django_db(transaction=True)

REFUSED = "no thread could be started"


def green_call(function):
    return database_sync_to_async(function, green=True)()


def plain_call(function):
    return database_sync_to_async(function)()


def count():
    return User.objects.count()


async def assert_recovered():
    """See that the pool has lost no worker."""
    assert await plain_call(count) == 0
    assert await green_call(count) == 0
    await no_worker_is_leased()
    assert (stats().threads, stats().waiting) == (1, 0)


async def test_no_thread_for_a_green_call(green, refuse):
    """A green call without a worker fails; the next one has a worker, and that a thread."""
    green(MAX_THREADS=1)
    refuse()
    with pytest.raises(PoolTimeout, match=REFUSED):
        await green_call(count)
    await assert_recovered()


async def test_green_calls_make_do_with_the_workers_that_there_are(green, refuse):
    """They wait in line for those, as on threads: none fails where one can be served."""
    green(MAX_THREADS=2)
    assert await green_call(count) == 0
    refuse(10_000)
    assert await asyncio.gather(*(green_call(count) for _ in range(10))) == [0] * 10
    refuse(0)
    await assert_recovered()


async def test_what_blocks_before_a_call(green, monkeypatch, caplog):
    """The log names the lease where what holds up the loop is no call of it. It keeps no lease."""
    green(MAX_THREADS=1)
    lease = importlib.import_module("ormbridge.green.worker").GreenLease
    run = lease._run

    def run_late(self, call):
        time.sleep(0.5)
        return run(self, call)

    monkeypatch.setattr(lease, "_run", run_late)
    watchdog = importlib.import_module("ormbridge.green.watchdog").watchdog
    monkeypatch.setattr(watchdog, "_told", set())
    monkeypatch.setattr(watchdog, "slow", 0.05)
    async with in_context(holds=True):
        assert await plain_call(count) == 0
    assert f"{__name__}.count holds up the event loop" in caplog.text
    arguments = {type(each) for record in caplog.records for each in record.args}
    assert arguments == {str, float}


async def test_no_thread_to_look_for_what_blocks(green, monkeypatch):
    """A function runs unwatched, and what blocks is looked for again once a thread can be had."""
    watchdog = importlib.import_module("ormbridge.green.watchdog").Watchdog()
    monkeypatch.setattr("ormbridge.green.switch.watchdog", watchdog)
    start = threading.Thread.start

    def refuse(thread):
        if thread.name == "ormbridge-watchdog":
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert await green_call(count) == 0
    assert watchdog.sleeps
    assert await green_call(count) == 0
    assert not watchdog.sleeps


def test_what_blocks_is_looked_for_in_a_forked_child(green):
    """The thread that looks is the parent's: the child's first call starts one."""
    result = run_python(
        """
        import os
        from ormbridge.green.watchdog import watchdog

        watchdog.wake()
        assert not watchdog.sleeps
        child = os.fork()
        if not child:
            os._exit(not watchdog.sleeps)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        """,
        DJANGO_SETTINGS_MODULE="tests.settings",
    )
    assert (result.returncode, result.stdout) == (0, "0\n"), result.stderr
