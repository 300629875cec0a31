"""The reference: what each setting accepts, and how each error comes about."""

import asyncio
import contextvars
import re

import pytest

from ormbridge import (
    BridgeError,
    LeaseClosed,
    PoolClosed,
    PoolTimeout,
    TransactionAborted,
    database_sync_to_async,
    pinned,
    stats,
)
from tests.core.gate import GUARD
from tests.support.examples import example_source

# Settings.


def test_refused_settings(run_script, recorded):
    """A key or value that is not understood is an ``ImproperlyConfigured``."""
    recorded("settings/refused", run_script(example_source("settings/refused")))


def test_no_setting_is_needed(settings):
    """The bridge works without ``settings.ORMBRIDGE``."""
    del settings.ORMBRIDGE
    assert stats().threads == 0


# Errors.


def test_error_tree():
    """Each error of the bridge is a ``BridgeError``, which is a ``RuntimeError``."""
    for error in (LeaseClosed, PoolClosed, PoolTimeout, TransactionAborted):
        assert issubclass(error, BridgeError)
    assert issubclass(BridgeError, RuntimeError)


def test_pool_timeout(run_script, recorded):
    """A call that waits longer than ``TIMEOUT`` raises ``PoolTimeout``; it names the holders."""
    output = run_script(example_source("errors/pool_timeout"))
    # A busy machine waits a little longer than TIMEOUT, and says so.
    waits = [float(seconds) for seconds in re.findall(r"(\d+\.\d) s", output)]
    assert len(waits) == 2
    assert 0.5 <= min(waits) <= max(waits) < GUARD
    recorded("errors/pool_timeout", re.sub(r"\d+\.\d s", "0.5 s", output))


def test_pool_timeout_under_asyncio_run(run_script, recorded):
    """``asyncio.run`` in a function on a worker raises at once where its call finds no worker."""
    recorded("errors/asyncio_run", run_script(example_source("errors/asyncio_run")))


def test_pool_timeout_without_a_thread(run_script, recorded):
    """Where the system starts no thread, a call raises at once; the next one tries again."""
    recorded("errors/thread_refused", run_script(example_source("errors/thread_refused")))


def test_pool_timeout_in_a_transaction(run_script, recorded):
    """``thread_sensitive=False`` in a transaction raises at once where it finds no worker."""
    recorded("errors/transaction", run_script(example_source("errors/transaction")))


def test_pool_closed(run_script, recorded):
    """A call from an ``atexit`` function raises ``PoolClosed``."""
    recorded("errors/pool_closed", run_script(example_source("errors/pool_closed")))


def test_pool_timeout_for_a_turn_beside_a_block(run_script, recorded):
    """A block that awaits a call beside it waits for itself, and gets a ``PoolTimeout``."""
    output = run_script(example_source("errors/turn"))
    # A busy machine waits a little longer than TIMEOUT, and says so.
    (waited,) = re.findall(r"waited (\d+\.\d) s", output)
    assert 0.5 <= float(waited) < GUARD
    recorded("errors/turn", re.sub(r"\d+\.\d s", "0.5 s", output))


def test_lease_closed(run_script, recorded):
    """A call of a task that outlived its block raises ``LeaseClosed``."""
    recorded("errors/lease_closed", run_script(example_source("errors/lease_closed")))


async def test_task_that_something_starts_when_it_is_first_used():
    """A task that a library starts by itself, in a block by chance, is inside for good."""
    read = database_sync_to_async(lambda: "read")

    async def refresh(ask):
        await ask.wait()
        return await read()

    async def started(ask, **options):
        async with pinned():
            return asyncio.create_task(refresh(ask), **options)

    ask = asyncio.Event()
    inside, outside = await started(ask), await started(ask, context=contextvars.Context())
    at_start = asyncio.create_task(refresh(ask))  # where no block is open
    ask.set()
    with pytest.raises(LeaseClosed):
        await inside
    assert await asyncio.gather(outside, at_start) == ["read", "read"]


def test_task_with_a_context_of_its_own_outlives_its_block(run_script):
    """A task that is started with an empty context is not inside the block."""
    source = example_source("errors/lease_closed").replace(
        "log_later(committed))", "log_later(committed), context=contextvars.Context())"
    )
    assert "written\n" == run_script(f"import contextvars\n{source}")
