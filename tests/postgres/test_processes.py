"""Processes that end, or fork, while a call is being stopped."""

# What a block does, and raises, is more than one statement.

import os

import pytest

from tests.core.support import run_python
from tests.support.canceller import postgresql

pytestmark = pytest.mark.django_db(transaction=True)


# Processes

SETUP = """
import asyncio, os, sys, threading, time
import django
django.setup()
from django.db import connection, connections
from ormbridge import database_sync_to_async, stats
database = connections.settings["default"]
database["NAME"] = database["TEST"]["NAME"]

def sleep():
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(600)")
"""


def run(source):
    return run_python(
        SETUP + source,
        DJANGO_SETTINGS_MODULE="tests.settings",
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )


@postgresql
def test_process_ends_without_waiting_for_what_was_cancelled():
    """A process whose loop ends does not wait for the statement of a cancelled call."""
    result = run(
        """
async def main():
    asyncio.create_task(database_sync_to_async(sleep)())
    while not stats().holders:
        await asyncio.sleep(0.001)

asyncio.run(main())
print("the loop has ended")
"""
    )
    assert (result.stdout, result.stderr) == ("the loop has ended\n", "")
    assert result.returncode == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_fork_while_a_request_is_on_its_way():
    """A child that a function forks while a request is on its way does not wait for it."""
    result = run(
        """
from ormbridge.core.connections import connections_of_thread
held, ended = threading.Event(), threading.Event()

def hold(lock):
    with lock:
        held.set()
        ended.wait()

def fork():
    own = connections_of_thread()
    threading.Thread(target=hold, args=[own.finishing]).start()
    held.wait()
    child = os.fork()
    if not child:
        os._exit(not own.finishing.acquire(timeout=10))
    print("exit status", os.waitpid(child, 0)[1])
    ended.set()

asyncio.run(database_sync_to_async(fork)())
"""
    )
    assert result.stderr == ""
    assert result.stdout == "exit status 0\n"
