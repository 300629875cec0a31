"""Fixtures of the tests of what is stopped."""

import asyncio
import threading

import pytest

from ormbridge.core.connections import ThreadConnections
from ormbridge.postgres import canceller as canceller_module
from tests.core.gate import GUARD
from tests.support.canceller import Outside, cancellers


@pytest.fixture
def outside(transactional_db):
    """Hold the tables of users and groups: every statement on them waits, until it is stopped."""
    outside = Outside()
    yield outside
    outside.close()


@pytest.fixture
def one_worker(pool_settings):
    """Let there be one worker: it serves the next call only when the one before has ended."""
    pool_settings(MAX_THREADS=1)


@pytest.fixture(autouse=True)
def cancellers_end():
    """Wait for the threads that stop calls: they end a moment after the call."""
    yield
    for thread in cancellers():
        thread.join(GUARD)


@pytest.fixture
def looks(monkeypatch):
    """Return a function that waits until the canceller has looked *number* times more.

    The first of these may have begun before. It goes on looking for longer than its few seconds:
    the machine may stand still for so long.
    """
    monkeypatch.setattr(ThreadConnections, "BOUND", GUARD)
    looked = threading.Semaphore(0)
    look = canceller_module._cancel_statements

    def count_and_look(call, own, timeout):
        look(call, own, timeout)
        looked.release()

    async def looks(number):
        while looked.acquire(blocking=False):
            pass
        for _ in range(number):
            assert await asyncio.to_thread(looked.acquire, timeout=GUARD)

    monkeypatch.setattr(canceller_module, "_cancel_statements", count_and_look)
    return looks
