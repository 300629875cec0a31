"""The system starts no thread, and a green function needs one."""

import asyncio
import contextvars
import importlib
import threading
import time

import pytest
from django.contrib.auth.models import User

from ormbridge import PoolTimeout, database_sync_to_async, stats
from ormbridge.core.worker import Worker
from tests.core.gate import GUARD
from tests.core.support import no_worker_is_leased, run_python, until
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


async def test_no_thread_to_connect(green, refuse):
    """A green call that has to connect fails; the next one has a thread."""
    green(MAX_THREADS=1)
    refuse()
    with pytest.raises(PoolTimeout, match=REFUSED):
        await green_call(count)
    await assert_recovered()


async def test_no_thread_is_needed_without_a_connection(green, refuse):
    """A green function that uses no database needs no thread."""
    green(MAX_THREADS=1)
    refuse()
    assert await green_call(threading.get_ident) == threading.get_ident()
    with pytest.raises(PoolTimeout, match=REFUSED):  # this one does, and it is still refused
        await plain_call(count)
    await assert_recovered()


async def test_no_thread_for_a_call_that_is_not_green(green, refuse):
    """In a request, a call that has to run on a thread fails; the request goes on."""
    green(MAX_THREADS=1)
    async with in_context(holds=True):
        await green_call(threading.get_ident)
        refuse()
        async with asyncio.timeout(GUARD):
            with pytest.raises(PoolTimeout, match=REFUSED):
                await plain_call(count)
            assert await plain_call(count) == 0
    await assert_recovered()


async def test_thread_that_starts_slowly(green, monkeypatch, caplog):
    """The log names what waits for a thread to start, as on a busy machine, and keeps only that."""
    green(MAX_THREADS=1)
    start = Worker.start

    def start_slowly(worker):
        time.sleep(0.5)
        start(worker)

    monkeypatch.setattr(Worker, "start", start_slowly)
    watchdog = importlib.import_module("ormbridge.green.watchdog").watchdog
    monkeypatch.setattr(watchdog, "_told", set())
    monkeypatch.setattr(watchdog, "slow", 0.05)
    async with in_context(holds=True):
        assert await plain_call(count) == 0
    assert f"{__name__}.count holds up the event loop" in caplog.text
    arguments = {type(each) for record in caplog.records for each in record.args}
    assert arguments == {str, float}


async def test_no_thread_for_the_next_lease(green, refuse):
    """Who is next in line, and needs a thread, fails; it does not keep the worker."""
    green(MAX_THREADS=1)
    async with in_context(holds=True):
        await green_call(threading.get_ident)
        following = asyncio.create_task(plain_call(count), context=contextvars.Context())
        await until(lambda: stats().waiting == 1)
        refuse()
    async with asyncio.timeout(GUARD):
        with pytest.raises(PoolTimeout, match=REFUSED):
            await following
    await assert_recovered()


called_with = []


def reset(connection):
    """Note what RESET was called with."""
    called_with.append(connection.alias)


async def test_no_thread_for_reset(green, refuse):
    """RESET of a worker that never connected needs no thread."""
    green(MAX_THREADS=1, RESET=f"{__name__}.reset")
    called_with.clear()
    refuse()
    async with asyncio.timeout(GUARD):
        assert await green_call(threading.get_ident) == threading.get_ident()
    assert called_with == ["default"]
    refuse(0)
    await assert_recovered()


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
