"""The end of the process, and forks: calls finish, nothing hangs, parents are left alone."""

import os
import sys

import pytest

from tests.core.support import run

# The processes use the test database of this run.
pytestmark = pytest.mark.django_db(transaction=True)


def test_running_call_finishes_at_exit():
    """A call that runs when the interpreter exits finishes; the process then ends."""
    result = run(
        """
inside, exiting = threading.Event(), threading.Event()
# Runs as the interpreter exits, before what was registered earlier.
threading._register_atexit(exiting.set)

def slow():
    inside.set()
    exiting.wait()
    time.sleep(0.05)  # a pool that does not wait would be gone by then
    print("finished", flush=True)

async def main():
    asyncio.ensure_future(database_sync_to_async(slow)())
    await asyncio.to_thread(inside.wait)

asyncio.run(main())
print("main is done", flush=True)
"""
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["main is done", "finished"]
    assert result.returncode == 0


def test_waiting_call_is_refused_at_exit():
    """A call that still waits for a worker when the interpreter exits gets PoolClosed."""
    result = run(
        """
settings.ORMBRIDGE = {"MAX_THREADS": 1}
inside, refused = threading.Event(), threading.Event()
def slow():
    inside.set()
    refused.wait()

async def on_another_thread():
    running = asyncio.ensure_future(database_sync_to_async(slow)())
    # No asyncio.to_thread: its executor needs a thread to shut down, which 3.12 refuses at exit.
    while not inside.is_set():
        await asyncio.sleep(0.001)
    try:
        await database_sync_to_async(print)("must not run")
    except PoolClosed as error:
        print(type(error).__name__, error, flush=True)
    try:
        await database_sync_to_async(print)("must not run either")
    except PoolClosed as error:
        print(type(error).__name__, error, flush=True)
    refused.set()
    await running

threading.Thread(target=lambda: asyncio.run(on_another_thread())).start()
inside.wait()
while not stats().waiting:
    time.sleep(0.001)
"""
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "PoolClosed the interpreter exits; the call waited for a worker and did not run [exiting]",
        "PoolClosed builtins.print came too late: the interpreter exits, no calls are taken "
        "[exiting]",
    ]
    assert result.returncode == 0


def test_idle_workers_do_not_keep_the_process():
    """Idle workers, however long MAX_IDLE is, do not keep the interpreter from exiting."""
    result = run(
        """
async def main():
    await asyncio.gather(*[database_sync_to_async(len)("") for _ in range(20)])

asyncio.run(main())
print(stats().threads > 0, flush=True)
"""
    )
    assert (result.stdout, result.stderr, result.returncode) == ("True\n", "", 0)


def test_connections_close_on_their_own_threads_at_exit():
    """At exit every worker closes its connections, on its own thread."""
    result = run(
        """
from django.db.backends.base.base import BaseDatabaseWrapper
original = BaseDatabaseWrapper.close
def close(self):
    print("closed on", threading.current_thread().name, flush=True)
    original(self)
BaseDatabaseWrapper.close = close

asyncio.run(database_sync_to_async(lambda: connection.ensure_connection())())
print("main is done", flush=True)
""",
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["main is done", "closed on ormbridge-worker-1"]
    assert result.returncode == 0


def test_exit_without_any_call():
    """A process that imports the package and calls nothing ends as usual."""
    result = run("print('done')")
    assert (result.stdout, result.stderr, result.returncode) == ("done\n", "", 0)


def test_pool_may_be_asked_for_while_it_is_made(tmp_path):
    """A module named by RESET that asks for stats() as it is imported fails; it does not hang."""
    (tmp_path / "resets.py").write_text("from ormbridge.core.process import stats\nstats()\n")
    result = run(
        f"""
import faulthandler
from django.core.exceptions import ImproperlyConfigured
sys.path.insert(0, {str(tmp_path)!r})
settings.ORMBRIDGE = {{"RESET": "resets.reset"}}
faulthandler.dump_traceback_later(30, exit=True)
try:
    stats()
except ImproperlyConfigured as error:
    print(error)
"""
    )
    assert result.stderr == ""
    assert "settings.ORMBRIDGE['RESET'] is 'resets.reset'" in result.stdout


def test_first_call_at_exit_is_refused():
    """The first call of a process gets PoolClosed too if it is made as the interpreter exits."""
    result = run(
        """
import atexit

@atexit.register
def at_exit():
    try:
        asyncio.run(database_sync_to_async(print)("ran at exit"))
    except PoolClosed as error:
        print(type(error).__name__, error)
"""
    )
    assert result.stderr == ""
    assert result.stdout == (
        "PoolClosed builtins.print came too late: the interpreter exits, no calls are taken "
        "[exiting]\n"
    )
    assert result.returncode == 0


fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


FORK = """
def where():
    with connection.cursor() as cursor:
        cursor.execute(WHO)
        return threading.current_thread().name, cursor.fetchone()[0]

WHO = {
    "postgresql": "SELECT pg_backend_pid()",
    "mysql": "SELECT CONNECTION_ID()",
    "sqlite": "SELECT 1",
}[connection.vendor]
bridged = database_sync_to_async(where)

async def twice():
    # At the same time, so that two workers hold connections.
    both = threading.Barrier(2)
    def meet():
        both.wait()
        return where()
    return await asyncio.gather(*[database_sync_to_async(meet)() for _ in range(2)])

before = asyncio.run(twice())
child = os.fork()
if not child:
    assert stats().threads == 0, stats()
    inside = asyncio.run(bridged())
    assert stats().threads == 1, stats()
    if connection.vendor != "sqlite":
        assert inside[1] not in [session for _, session in before], (inside, before)
    sys.exit()  # the interpreter ends in the usual way, and frees what it has
_, status = os.waitpid(child, 0)
assert status == 0, status
after = asyncio.run(twice())
assert sorted(after) == sorted(before), (before, after)
print("the parent kept its workers and connections")
"""


@fork
def test_forked_child_starts_empty_and_leaves_the_parent_alone():
    """A child forked after use has its own pool; the parent's connections survive its end."""
    result = run(FORK, PYTHONWARNINGS="ignore::DeprecationWarning")
    assert result.stderr == ""
    assert result.stdout == "the parent kept its workers and connections\n"


if sys.version_info >= (3, 12):

    @fork
    def test_python_warns_of_a_fork():
        """Python warns of a fork where workers run, and all goes well."""
        result = run(FORK)
        said = "is multi-threaded, use of fork() may lead to deadlocks in the child."
        assert said in result.stderr
        assert result.stdout == "the parent kept its workers and connections\n"


@fork
def test_fork_while_a_call_runs():
    """A child forked while a call runs in the parent can call, and ends."""
    result = run(
        """
inside, go_on = threading.Event(), threading.Event()
def slow():
    inside.set()
    go_on.wait()
    return "the parent's call finished"

async def main():
    running = asyncio.ensure_future(database_sync_to_async(slow)())
    await asyncio.to_thread(inside.wait)
    child = os.fork()
    if not child:
        def in_the_child():
            assert asyncio.run(database_sync_to_async(len)("abc")) == 3
            assert stats().threads == 1
        # The child's main thread has the parent's running loop: use another one.
        thread = threading.Thread(target=in_the_child)
        thread.start()
        thread.join()
        os._exit(0 if stats().calls == 1 else 1)
    _, status = os.waitpid(child, 0)
    go_on.set()
    print(status, await running)

asyncio.run(main())
""",
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )
    assert result.stderr == ""
    assert result.stdout == "0 the parent's call finished\n"


@fork
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="there such a child never ends anyway")
@pytest.mark.parametrize("lock_is_held", [False, True])
def test_child_that_ends_with_the_loop_of_the_parent(lock_is_held):
    """In a child of a coroutine that calls sys.exit(), calls that run or wait keep nothing."""
    result = run(
        f"""
settings.ORMBRIDGE = {{"MAX_THREADS": 1}}
inside, go_on, held, let_go = (threading.Event() for _ in range(4))
def slow():
    inside.set()
    go_on.wait()

def hold():
    with default_pool()._lock:
        held.set()
        let_go.wait()

async def main():
    running = asyncio.create_task(database_sync_to_async(slow)())
    waiting = asyncio.create_task(database_sync_to_async(len)("abc"))
    while not (inside.is_set() and stats().waiting):
        await asyncio.sleep(0)
    if {lock_is_held}:  # by another thread, as it comes about now and then
        threading.Thread(target=hold).start()
        held.wait()
    child = os.fork()
    if not child:
        sys.exit()
    let_go.set()
    _, status = os.waitpid(child, 0)
    go_on.set()
    print(status, await running, await waiting)

asyncio.run(main())
""",
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )
    assert (result.stdout, result.stderr) == ("0 None 3\n", "")


@fork
def test_child_forked_by_a_worker_has_all_of_its_pool():
    """In a child that a call forked, calls wait for a worker: the thread holds none there."""
    result = run(
        """
settings.ORMBRIDGE = {"MAX_THREADS": 2}
def forking():
    child = os.fork()
    if not child:
        async def many():
            return await asyncio.gather(*[database_sync_to_async(len)("abc") for _ in range(20)])
        try:
            assert asyncio.run(many()) == [3] * 20
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]

print(asyncio.run(database_sync_to_async(forking)()))
""",
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )
    assert result.stderr == ""
    assert result.stdout == "0\n"


@fork
def test_prefork_workers():
    """Several children forked after use, as by a prefork server, each have a pool of their own."""
    result = run(
        """
asyncio.run(database_sync_to_async(lambda: connection.ensure_connection())())
children = []
for _ in range(3):
    child = os.fork()
    if not child:
        calls = [database_sync_to_async(lambda: connection.ensure_connection()) for _ in range(5)]
        async def main():
            await asyncio.gather(*[call() for call in calls])
        asyncio.run(main())
        sys.exit(0 if stats().calls == 5 else 1)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children], stats().calls)
""",
        PYTHONWARNINGS="ignore::DeprecationWarning",
    )
    assert result.stderr == ""
    assert result.stdout == "[0, 0, 0] 1\n"
