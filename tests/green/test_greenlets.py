"""Greenlets: whose turn it is, which are used again, and what is deep in the stack or forks."""

import asyncio
import importlib
import os
import sys
import threading
from contextlib import suppress
from itertools import pairwise

import pytest
from django.contrib.auth.models import User
from django.db import connection
from greenlet import getcurrent

from ormbridge import atomic, database_sync_to_async, stats
from ormbridge.core import process
from tests.core.gate import Gate
from tests.core.support import until
from tests.support.canceller import in_context
from tests.support.loops import answer_all, green_where, use_up_the_slice

pytestmark = pytest.mark.django_db(transaction=True)


async def test_woken_for_another_wait(green, held):
    """What waits for its server, or for a thread, goes on waiting for that until it has come."""
    green(MAX_THREADS=1)
    running = importlib.import_module("ormbridge.green.loops").running

    async def wake():
        """Wake the one that runs, as if it had waited for something before this."""
        (runner,) = running
        runner.wake()
        await asyncio.sleep(0)  # it went on, and waits again
        assert runner.since == 0

    async with in_context(holds=True):
        call = asyncio.create_task(green_where())
        await held.sees(1)
        await wake()
        held.let_go()
        assert await call == threading.get_ident()
        gate = Gate()
        call = asyncio.create_task(database_sync_to_async(gate)())
        await gate.entered()
        await wake()
        assert not call.done()
        gate.open.set()
        assert await call == "ormbridge-worker-1"
        assert await green_where() == threading.get_ident()


async def test_loop_turns_between_two_answers(green, held, monkeypatch):
    """Where many have their answer at one time, and each is long at work, the loop turns.

    It is told of each answer once, and not in each turn.
    """
    answers = importlib.import_module("ormbridge.green.loops")
    look, told, went_on = answers.Answers._look, [], []
    monkeypatch.setattr(answers.Answers, "_look", lambda *args: told.append(look(*args)))
    green(MAX_THREADS=3)

    async def call(name):
        def function():
            User.objects.exists()
            went_on.append(name)
            use_up_the_slice()

        await database_sync_to_async(function, green=True)()

    async def turn():
        while len([each for each in went_on if each != "turn"]) < 3:
            went_on.append("turn")
            await asyncio.sleep(0)

    calls = [asyncio.create_task(call(name)) for name in "abc"]
    await held.sees(3)
    answer_all(held)
    await asyncio.gather(turn(), *calls)
    order = "".join("-" if each == "turn" else each for each in went_on)
    assert sorted(order.replace("-", "")) == ["a", "b", "c"]
    assert not {"ab", "ac", "ba", "bc", "ca", "cb"} & {*map("".join, pairwise(order))}, order
    assert len(told) == 1


async def test_loop_turns_while_statements_are_sent(green, monkeypatch):
    """executemany() sends a row after the other, and the socket can nearly always take one more."""
    waits = importlib.import_module("ormbridge.green.psycopg")
    ready, turn, asked_in = waits._ready, 0, []

    def note(*args):
        asked_in.append(turn)
        return ready(*args)

    def function():
        with connection.cursor() as cursor:
            rows = [[f"group {number}"] for number in range(1000)]
            cursor.executemany("INSERT INTO auth_group (name) VALUES (%s)", rows)

    monkeypatch.setattr(waits, "_ready", note)
    green(MAX_THREADS=1)
    call = asyncio.create_task(database_sync_to_async(function, green=True)())
    while not call.done():
        turn += 1
        await asyncio.sleep(0)
    await call
    assert len({*asked_in}) > 10


async def test_greenlets_are_used_again(green, monkeypatch):
    """Calls that follow one another have one greenlet, but for one that was interrupted."""
    green(MAX_THREADS=2)
    runner = importlib.import_module("ormbridge.green.runner")
    monkeypatch.setattr(runner.green, "idle", [])
    got_id = database_sync_to_async(lambda: id(getcurrent()), green=True)
    first = await got_id()
    assert {await got_id() for _ in range(3)} == {first}
    (idle,) = runner.green.idle
    with pytest.raises(KeyboardInterrupt):
        idle.throw(KeyboardInterrupt)
    assert await got_id() in {id(each) for each in runner.green.idle if each is not idle}


async def test_call_deep_in_the_stack(green):
    """It runs on a thread: a greenlet begins on top of its caller's stack, and would keep that."""
    green(MAX_THREADS=2)
    half = sys.getrecursionlimit() // 2

    def dive(depth):
        return threading.get_ident() if depth == 0 else dive(depth - 1)

    async def call(depth, bridge):
        return await (bridge(half) if depth == 0 else call(depth - 1, bridge))

    on_loop = database_sync_to_async(dive, green=True)
    assert await call(half, on_loop) != threading.get_ident()
    assert await call(0, on_loop) == threading.get_ident()
    async with in_context(holds=True):
        assert await call(half, on_loop) != threading.get_ident()
    assert await call(0, on_loop) == threading.get_ident()


@pytest.mark.parametrize("what", ["call", "block"])
async def test_endless_recursion(green, what):
    """It fails as on threads: what is called at the end of the stack loses no worker."""
    green(MAX_THREADS=2)
    await green_where()
    nothing = database_sync_to_async(int, green=True)

    async def call(depth):
        return await (nothing() if depth == 0 else call(depth - 1))

    async def block():
        async with atomic():
            await block()

    if what == "block":
        with pytest.raises(RecursionError):
            await block()
    else:
        for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit(), 3):
            with suppress(RecursionError):
                await call(depth)
    await until(lambda: stats().idle == stats().threads)
    assert await green_where() == threading.get_ident()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.* is multi-threaded:DeprecationWarning")
async def test_fork_in_a_green_function():
    """The child of a green function goes on in that function, and never in the event loop."""
    own = threading.get_ident()

    def function():
        User.objects.exists()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                connection.connection = None  # it is the parent's
                process._pool = None
                User.objects.exists()
                os.write(writer, b"went on")
            finally:
                os._exit(0)
        os.close(writer)
        said = os.read(reader, 100)
        os.close(reader)
        os.waitpid(child, 0)
        User.objects.exists()
        return said, threading.get_ident()

    assert await database_sync_to_async(function, green=True)() == (b"went on", own)
