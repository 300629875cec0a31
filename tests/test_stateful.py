"""Leases, pool and blocks under any order of events: what Hypothesis tries must hold.

Nothing is left to chance but the order of events. The test turns the event loop by hand, the clock
is its own, and a function on a worker waits at a gate until a rule opens it. After each rule
everything has come to rest: each worker waits for a lease, for a call, or at a gate.

What is done is compared with what a small model expects:

* never more workers than the bound, and none idle while somebody waits for one; fewer only where
  the system refused to start one, and without any nobody waits;
* calls of one line and block start in the order in which they came, plain calls as well;
* a call sees exactly the transactions of the blocks that it belongs to, on each alias, savepoints
  in order; in a synchronous frame it is on the frame's thread;
* no call starts in a block that has begun to close, or after its caller gave it up;
* what a call wrote is there at the end if all blocks around it committed, and else is not; a block
  without a savepoint takes the one around it along, and a durable one is refused in another;
* what was given to on_commit() runs in order after the commit, and never after a rollback;
* a stream has its rows in order, and none after the end of the block that it was begun in;
* at the end every task has ended, and the pool is whole.

``ORMBRIDGE_TEST_EXAMPLES=20000`` tries more of them than the 150 of each run.
"""

import faulthandler
import importlib
import os
from importlib.util import find_spec

import pytest
from asgiref.current_thread_executor import CurrentThreadExecutor
from django.db import connections
from django.db.backends.signals import connection_created
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from ormbridge.core import process
from ormbridge.core.worker import Worker
from ormbridge.leases.lease import Lease
from tests.settings import CHOICE
from tests.support.machine import Machine
from tests.support.model import ALIASES, Rest, WatchedCondition

EXAMPLES = int(os.environ.get("ORMBRIDGE_TEST_EXAMPLES", "150"))
STEPS = 50

settings.register_profile(
    "ormbridge",
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    report_multiple_bugs=False,
)


def make_table(connection, **kwargs):
    """Give each connection a table of its own, in which all of them write without waiting."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE written (number integer)")


@pytest.fixture(params=["threads", "green"])
def asked(request, monkeypatch, pool_settings):
    """Return those who wait for the server on the loop's thread, None if none ever does."""
    if request.param == "threads":
        pool_settings(GREEN=False)
        return None
    if CHOICE != "postgresql" or find_spec("greenlet") is None:
        pytest.skip("green functions need PostgreSQL, psycopg 3 and greenlet")
    answers = importlib.import_module("ormbridge.green.loops").Answers
    wait, asked = answers.wait, []

    def note(self, runner, handle):
        asked.append(runner)
        try:
            return wait(self, runner, handle)
        finally:
            asked.remove(runner)

    monkeypatch.setattr(answers, "wait", note)
    return asked


@pytest.fixture
def machine(monkeypatch, connection_settings, asked):
    """Return the machine, with locks that tell who waits for them."""
    rest = Rest()

    def watch(owner, name, watched):
        original = owner.__init__

        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            setattr(self, name, watched())

        monkeypatch.setattr(owner, "__init__", init)

    watch(Worker, "wake", rest.lock)
    watch(Lease, "_wake", rest.lock)
    watch(CurrentThreadExecutor, "_work_ready", lambda: WatchedCondition(rest))
    for using in ALIASES:
        connection_settings(using, CONN_MAX_AGE=None)
        if CHOICE == "sqlite":
            options = connections.settings[using]["OPTIONS"]
            connection_settings(using, OPTIONS={**options, "transaction_mode": "DEFERRED"})
    pools = {}
    connection_created.connect(make_table)
    shared = {"pools": pools, "rest": rest, "abandoned": []}
    shared |= {"green": asked is not None, "asked": [] if asked is None else asked}
    yield type("Machine", (Machine,), shared)
    connection_created.disconnect(make_table)
    for pool in pools.values():
        process.end(pool)


@pytest.mark.django_db(transaction=True, databases=ALIASES)
def test_leases_and_blocks(machine):
    """Whatever happens in whatever order, calls, blocks and workers stay in order."""
    # Thousands of examples take longer than a test may, and each wait has a limit of its own.
    faulthandler.cancel_dump_traceback_later()
    run_state_machine_as_test(machine, settings=settings.get_profile("ormbridge"))
