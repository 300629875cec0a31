"""What the tests of loops and greenlets share: where a function runs, and how answers come."""

import asyncio
import importlib
import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from django.contrib.auth.models import User

from ormbridge import database_sync_to_async, stats
from ormbridge.core import process
from tests.core.gate import GUARD, block_until


def where():
    """Use the database; return the thread."""
    User.objects.exists()
    return threading.get_ident()


green_where = database_sync_to_async(where, green=True)


def in_thread(function, *args):
    """Call *function* on a thread of its own; return what it returns."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(function, *args).result(GUARD)


def assert_whole():
    """See that every worker is free, and that all of them can be had."""
    assert stats().idle == stats().threads
    assert stats().waiting == 0
    assert asyncio.run(green_where()) == threading.get_ident()


def answer_all(held):
    """Let all go on that *held* holds; return when each has its answer, and the loop can see it."""
    raws = [each.connections.opened[0].connection for each in process.default_pool().workers]
    held.let_go()
    block_until(lambda: select.select(raws, [], [], 0)[0] == raws)


def use_up_the_slice():
    """Be at work for so long that no other greenlet goes on in this turn of the loop."""
    end = time.monotonic() + 2 * importlib.import_module("ormbridge.green.loops").SLICE
    while time.monotonic() < end:
        pass
