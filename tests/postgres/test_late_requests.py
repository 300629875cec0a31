"""A request to cancel that comes late: no other call is hit."""

# What a block does, and raises, is more than one statement.

import asyncio
import threading

import pytest
from django.contrib.auth.models import User
from django.db import connection, connections

from ormbridge import (
    database_sync_to_async,
    stats,
)
from ormbridge.core import hooks
from ormbridge.core.call import Call
from ormbridge.core.mailbox import mailbox_of
from ormbridge.core.process import default_pool
from ormbridge.postgres import canceller as canceller_module
from tests.core.gate import GUARD
from tests.core.support import until
from tests.support.canceller import cancelled, cancellers, pid, postgresql

pytestmark = pytest.mark.django_db(transaction=True)


# No other call is hit


class Watched:
    """A lock that says when somebody has to wait for it."""

    def __init__(self):
        self.lock = threading.RLock()
        self.waited_for = threading.Event()

    def __enter__(self):
        if not self.lock.acquire(blocking=False):
            self.waited_for.set()
            self.lock.acquire()

    def __exit__(self, *exc_info):
        self.lock.release()

    def acquire(self, blocking):
        return self.lock.acquire(blocking)

    def release(self):
        self.lock.release()


@pytest.fixture
def late(monkeypatch):
    """Let the canceller come late: it sends its first request when it is told to.

    ``late.came`` is set when it has seen that the statement is active; set ``late.go`` to have the
    request sent, and wait for ``late.sent``.
    """

    class Late:
        came, go, sent = threading.Event(), threading.Event(), threading.Event()

    send = canceller_module._cancel_statement

    def wait_and_send(raw, timeout):
        Late.came.set()
        assert Late.go.wait(GUARD)
        send(raw, timeout)
        Late.sent.set()

    monkeypatch.setattr(canceller_module, "_cancel_statement", wait_and_send)
    yield Late
    Late.go.set()


def watch_lock():
    """Watch the lock of the one worker."""
    (worker,) = default_pool().workers
    watched = worker.connections.finishing = Watched()
    return watched


async def either(*conditions):
    """Wait until one of the conditions holds."""
    async with asyncio.timeout(GUARD):
        while not any(condition() for condition in conditions):  # noqa: ASYNC110 - as until()
            await asyncio.sleep(0.001)


@postgresql
async def test_late_request_does_not_hit_the_next_call(outside, one_worker, late):
    """The worker begins no other call while a request to cancel is on its way."""
    await database_sync_to_async(pid)()
    lock = watch_lock()
    call = asyncio.create_task(database_sync_to_async(User.objects.count)())
    await outside.sees(1)
    await cancelled(call)
    assert await asyncio.to_thread(late.came.wait, GUARD)
    outside.let_go()  # the statement ends by itself, and the function too
    await outside.sees(0)
    outside.hold()
    following = asyncio.create_task(database_sync_to_async(User.objects.count)())
    await either(lock.waited_for.is_set, outside.waiting)
    late.go.set()
    assert await asyncio.to_thread(late.sent.wait, GUARD)
    outside.let_go()
    assert await asyncio.wait_for(following, GUARD) == 0


@postgresql
async def test_late_request_does_not_hit_the_next_user_of_a_pooled_connection(
    outside, pool_settings, connection_settings, late
):
    """A connection goes back to psycopg's pool only when no request to cancel is on its way."""
    pool_settings(MAX_THREADS=2)
    options = {"pool": {"min_size": 1, "max_size": 1}}
    connection_settings(CONN_MAX_AGE=0, OPTIONS=options)
    reconnected = threading.Event()

    def hand_back():
        User.objects.count()
        connection.close()
        assert reconnected.wait(GUARD)

    def reset():
        connections["default"].close_pool()

    try:
        call = asyncio.create_task(database_sync_to_async(hand_back)())
        await outside.sees(1)
        lock = watch_lock()
        await cancelled(call)
        assert await asyncio.to_thread(late.came.wait, GUARD)
        outside.let_go()
        await outside.sees(0)
        outside.hold()
        following = asyncio.create_task(database_sync_to_async(User.objects.count)())
        await either(lock.waited_for.is_set, outside.waiting)
        late.go.set()
        assert await asyncio.to_thread(late.sent.wait, GUARD)
        outside.let_go()
        assert await asyncio.wait_for(following, GUARD) == 0
    finally:
        late.go.set()
        reconnected.set()
        await until(lambda: stats().idle == stats().threads)
        await database_sync_to_async(reset)()


@postgresql
async def test_request_is_not_sent_to_a_worker_with_another_call(outside, one_worker, monkeypatch):
    """A canceller that comes when its call has ended sends nothing, whatever runs by then."""
    sent = []
    monkeypatch.setattr(
        canceller_module, "_cancel_statement", lambda raw, timeout: sent.append(raw)
    )
    call = FinishedCall()
    following = asyncio.create_task(database_sync_to_async(User.objects.count)())
    await outside.sees(1)
    (worker,) = default_pool().workers
    canceller_module._cancel_statements(call, worker.connections, GUARD)
    assert sent == []
    outside.let_go()
    assert await following == 0


@postgresql
async def test_call_is_stopped_by_one_thread():
    """Cancelled again and again, a call is stopped once."""
    call = Call(len, len, mailbox_of(asyncio.get_running_loop()))
    call.awaits = []
    assert call.claim()
    hooks.stop(call)
    hooks.stop(call)
    assert len(cancellers()) == 1
    call.finish()


class FinishedCall:
    """A call that has run."""

    awaits = ()
    calls = 1


class Halt:
    """Where the canceller waits: ``came`` is set when it has come, and ``go`` lets it go on."""

    def __init__(self):
        super().__init__()
        self.came, self.go = threading.Event(), threading.Event()

    def halt(self):
        if threading.current_thread() in cancellers():
            self.came.set()
            assert self.go.wait(GUARD)


class Slow(Halt, Watched):
    """A lock that the canceller takes when it is told to."""

    def __enter__(self):
        self.halt()
        super().__enter__()


@postgresql
async def test_canceller_looks_who_runs_when_it_has_the_lock(outside, one_worker, monkeypatch):
    """If the next call begins before the canceller has the lock, nothing is sent."""
    sent = []
    monkeypatch.setattr(
        canceller_module, "_cancel_statement", lambda raw, timeout: sent.append(raw)
    )
    await database_sync_to_async(pid)()
    (worker,) = default_pool().workers
    lock = worker.connections.finishing = Slow()
    call = asyncio.create_task(database_sync_to_async(User.objects.count)())
    await outside.sees(1)
    await cancelled(call)
    assert await asyncio.to_thread(lock.came.wait, GUARD)
    outside.let_go()
    await outside.sees(0)
    outside.hold()
    following = asyncio.create_task(database_sync_to_async(User.objects.count)())
    await outside.sees(1)
    lock.go.set()
    await until(lambda: cancellers() == [])
    assert sent == []
    outside.let_go()
    assert await following == 0


class Opened(Halt, list):
    """The open connections of a worker, at which the canceller looks when it is told to."""

    def __iter__(self):
        self.halt()
        return super().__iter__()


@postgresql
async def test_connection_that_the_next_call_opens(outside, one_worker, monkeypatch, gate):
    """A call without a connection ends at any time; what the next one opens is left alone."""
    sent = []
    monkeypatch.setattr(
        canceller_module, "_cancel_statement", lambda raw, timeout: sent.append(raw)
    )
    call = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    (worker,) = default_pool().workers
    opened = worker.connections.opened = Opened()
    await cancelled(call)
    assert await asyncio.to_thread(opened.came.wait, GUARD)
    gate.open.set()
    following = asyncio.create_task(database_sync_to_async(User.objects.count)())
    await outside.sees(1)
    opened.go.set()
    await until(lambda: cancellers() == [])
    assert sent == []
    outside.let_go()
    assert await following == 0
