"""The reference: what each setting accepts, and how each error comes about."""

import asyncio
import os
import re

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

import ormbridge
from ormbridge import BridgeError, PoolClosed, PoolTimeout, database_sync_to_async, stats
from ormbridge.settings import load_settings
from tests.gate import GUARD
from tests.guide.examples import example_source

# Settings.


def test_refused_settings(run_script, recorded):
    """A key or value that is not understood is an ``ImproperlyConfigured``."""
    recorded("settings_refused", run_script(example_source("settings_refused")))


def test_check_reports_refused_settings(pool_settings):
    """``manage.py check`` reports a refused setting as ``ormbridge.E001``."""
    pool_settings(MAX_THREADS=0)
    assert [message.id for message in run_checks(tags=["ormbridge"])] == ["ormbridge.E001"]


def test_no_setting_is_needed(settings):
    """The bridge works without ``settings.ORMBRIDGE``."""
    del settings.ORMBRIDGE
    assert stats().threads == 0


def test_default_max_threads(pool_settings):
    """Without ``ASGI_THREADS`` and ``MAX_THREADS`` the bound is the number of CPUs times five."""
    pool_settings()
    assert stats().max_threads == os.cpu_count() * 5


def test_max_threads(pool_settings):
    """``MAX_THREADS`` is the bound."""
    pool_settings(MAX_THREADS=7)
    assert stats().max_threads == 7


def test_asgi_threads_wins(pool_settings, monkeypatch):
    """The environment variable ``ASGI_THREADS`` wins over ``MAX_THREADS``."""
    monkeypatch.setenv("ASGI_THREADS", "3")
    pool_settings(MAX_THREADS=7)
    assert stats().max_threads == 3


@pytest.mark.parametrize("value", ["0", "-1", "abc", "", "2.5"])
def test_refused_asgi_threads(pool_settings, monkeypatch, value):
    """``ASGI_THREADS`` accepts a whole number of 1 or more, nothing else."""
    monkeypatch.setenv("ASGI_THREADS", value)
    pool_settings()
    with pytest.raises(
        ImproperlyConfigured,
        match=f"^the environment variable ASGI_THREADS is '{value}'; "
        "expected a whole number of 1 or more$",
    ):
        stats()


def test_default_times(settings):
    """A call waits 30 seconds for a worker, and a worker is kept for 600 seconds."""
    settings.ORMBRIDGE = {}
    in_force = load_settings()
    assert (in_force.timeout, in_force.max_idle) == (30.0, 600.0)


# What the functions below were called with.
reset_connections = []


def note_reset(connection):
    """Be a ``RESET`` that works."""
    reset_connections.append(connection.connection)


def refuse_reset(connection):
    """Be a ``RESET`` that fails."""
    raise RuntimeError("the session cannot be cleared")


def get_open_connection():
    """Return the driver's connection of the calling thread."""
    connection.ensure_connection()
    return connection.connection


async def test_reset(transactional_db, pool_settings):
    """When a call has used a connection, the function that ``RESET`` names is called with it."""
    pool_settings(RESET=f"{__name__}.note_reset")
    reset_connections.clear()
    used = await database_sync_to_async(get_open_connection)()
    assert reset_connections == [used]


async def test_failing_reset(transactional_db, pool_settings):
    """A connection whose ``RESET`` raises is closed, and the next call opens another."""
    pool_settings(RESET=f"{__name__}.refuse_reset")
    first, second = [await database_sync_to_async(get_open_connection)() for _ in range(2)]
    assert first is not second
    assert stats().discarded == 2


# Errors.


def test_error_tree():
    """``PoolTimeout`` and ``PoolClosed`` are ``BridgeError``, which is a ``RuntimeError``."""
    assert issubclass(PoolTimeout, BridgeError)
    assert issubclass(PoolClosed, BridgeError)
    assert issubclass(BridgeError, RuntimeError)


def test_pool_timeout(run_script, recorded):
    """A call that waits longer than ``TIMEOUT`` raises ``PoolTimeout``; it names the holders."""
    output = run_script(example_source("errors_pool_timeout"))
    # A busy machine waits a little longer than TIMEOUT, and says so.
    waits = [float(seconds) for seconds in re.findall(r"(\d+\.\d) s", output)]
    assert len(waits) == 2
    assert 0.5 <= min(waits) <= max(waits) < GUARD
    recorded("errors_pool_timeout", re.sub(r"\d+\.\d s", "0.5 s", output))


async def test_call_that_timed_out_never_runs(gate, pool_settings):
    """A call that raised ``PoolTimeout`` does not run later either."""
    pool_settings(MAX_THREADS=1, TIMEOUT=0.01)
    holding = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    ran = []
    with pytest.raises(PoolTimeout):
        await database_sync_to_async(ran.append)("late")
    gate.open.set()
    await holding
    await database_sync_to_async(ran.append)("next")
    assert ran == ["next"]


def test_pool_closed(run_script, recorded):
    """A call from an ``atexit`` function raises ``PoolClosed``."""
    recorded("errors_pool_closed", run_script(example_source("errors_pool_closed")))


# Names.


def test_public_names():
    """``ormbridge`` exports eight names."""
    assert sorted(ormbridge.__all__) == [
        "BridgeError",
        "DatabaseSyncToAsync",
        "PoolClosed",
        "PoolStats",
        "PoolTimeout",
        "aclose_old_connections",
        "database_sync_to_async",
        "stats",
    ]
