"""The page ``guide/testing``: its examples, pasted into a new project, and its claims."""

import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection, connections, transaction

from docs._ext.record import markers
from tests.core.support import run_python
from tests.settings import CHOICE
from tests.support.examples import example_source
from tests.support.project import CHOICES, Project

# Examples whose tests pass, and how many those are: under pytest, and under Django's own runner.
PASS = {
    "testing/after": 2,
    "testing/fixtures": 2,
    "testing/consumer": 1,
    "testing/view": 1,
    "testing/committed": 2,
    "testing/on_commit": 2,
    "testing/queries": 2,
    "testing/queries_django": 2,
    "testing/loop": 1,
    "testing/command": 2,
    "testing/with_anyio": 1,
    "testing/closed_after": 1,
    "testing/testcase": 2,
    "testing/testcase_helpers": 2,
    "testing/live_server": 1,
}
DJANGO = ["testing/testcase", "testing/testcase_helpers", "testing/live_server"]


@pytest.fixture
def paste(tmp_path: Path) -> Callable[..., Project]:
    """Return a function that makes a project, and pastes examples into it as they are shown."""

    def make(*names: str, database: str = CHOICES[-1]) -> Project:
        project = Project(tmp_path / "project", database, mode="strict")
        for name in names:
            shown = markers.excerpt(example_source(name))
            project.write(**{name.replace("testing/", "test_"): shown.text})
        return project

    return make


def said(finished: subprocess.CompletedProcess[str], project: Project) -> str:
    """Return what pytest printed, without the places of this run."""
    output = finished.stdout.replace(f"{project.path}/", "").replace(str(project.path), ".")
    return re.sub(r"\btest_test_ormbridge_\w+", "test_mysite", output)


# Examples that pass.


@pytest.mark.parametrize("database", CHOICES)
def test_examples_pass_twice(paste, recorded, database):
    """All examples that pass, pasted together, pass on a database that is kept, and on a new one.

    Each of them twice, and no warning is issued.
    """
    project = paste(*PASS, database=database)
    outputs = set()
    for options in (["--reuse-db"], ["--reuse-db"], [], []):
        finished = project.pytest("-vv", *options)
        assert finished.returncode == 0, finished.stdout
        assert finished.stderr == ""
        # No word of a warning.
        assert re.search(rf"(?m)^=+ {sum(PASS.values())} passed in [^,]*=+$", finished.stdout)
        outputs.add(tuple(re.findall(r"(?m)^test_\w+\.py::.* PASSED", finished.stdout)))
    (output,) = outputs
    for name, count in PASS.items():
        module = name.replace("testing/", "test_")
        lines = [line for line in output if line.startswith(f"{module}.py::")]
        assert len(lines) == count
        recorded(name, "\n".join(lines))


def test_djangos_own_runner(paste):
    """The examples of Django's test cases pass under its own runner, too."""
    finished = paste(*DJANGO).manage("test")
    assert finished.returncode == 0, finished.stderr
    assert f"Ran {sum(PASS[name] for name in DJANGO)} tests" in finished.stderr


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("testing/before", "testing/after", ("django_db", 'usefixtures("async_db")')),
        ("testing/closed_before", "testing/closed_after", ("channels.db", "ormbridge")),
    ],
)
def test_remedy_is_one_line(before, after, words):
    """The example that fails and the one that passes differ in one line, but for its place."""
    lines = [line for line in example_source(before).replace(*words).splitlines() if line]
    assert sorted(lines) == sorted(line for line in example_source(after).splitlines() if line)


# Examples that fail.


def test_plain_fixture_does_not_roll_back(paste, recorded):
    """With pytest-django's fixture, what async code writes is there in the next test."""
    project = paste("testing/before")
    finished = project.pytest("--tb=short", "-rN", "-p", "no:randomly")
    assert "1 failed, 1 passed in" in finished.stdout
    recorded("testing/before", said(finished, project))


WRITES = """
import asyncio
from django.contrib.auth.models import User

def test_one(db):
    asyncio.run(User.objects.acreate(username="ada"))

def test_two(db):
    assert not User.objects.exists()
"""


def test_loop_without_the_plugin(paste):
    """Without the plugin a loop sees no row of a synchronous test, and leaves its own behind."""
    project = paste("testing/loop")
    project.write(test_writes=WRITES)
    # Nor can PostgreSQL's database be dropped.
    without = ("-p", "no:pytest_ormbridge", "-W", "ignore", "--tb=no", "-rf")
    for module, failed in (("test_loop", "test_report"), ("test_writes", "test_two")):
        finished = project.pytest(*without, f"{module}.py")
        assert re.findall(r"(?m)^FAILED .*::(\w+)", finished.stdout) == [failed]
    assert "3 passed in" in project.pytest().stdout


def test_leak(paste, recorded):
    """A test that leaves a connection on a thread of nobody fails, and is told where."""
    project = paste("testing/leak")
    finished = project.pytest("--tb=short", "-rN")
    assert "1 passed, 1 error in" in finished.stdout
    recorded("testing/leak", said(finished, project))


def test_outside(paste, recorded, monkeypatch):
    """A connection that would not see the transaction is refused."""
    monkeypatch.setenv("CI", "true")  # pytest then tells all of a message
    project = paste("testing/outside")
    finished = project.pytest("--tb=no")
    assert "does not see the transaction of the test" in finished.stdout
    recorded("testing/outside", said(finished, project))


CLOSED = {
    "sqlite": "Cannot operate on a closed database.",
    "postgresql": "the connection is closed",
    "mariadb": "(2006, '')",
}


def test_closed_connection(paste, recorded, monkeypatch):
    """channels.db closes the connection of a test's transaction; each driver says it otherwise."""
    monkeypatch.setenv("CI", "true")
    project = paste("testing/closed_before")
    finished = project.pytest("-p", "no:pytest_ormbridge", "--tb=no")
    assert f"Error: {CLOSED[CHOICE]}\n1 failed in" in finished.stdout
    if CHOICE == "postgresql":  # whose words people look for
        recorded("testing/closed_before", said(finished, project))


@pytest.mark.parametrize("fixture", ["db", "async_db"])
def test_closed_connection_with_the_plugin(paste, fixture):
    """With the plugin the same code passes: nothing closes the connection."""
    project = paste()
    source = example_source("testing/closed_before").replace("(db)", f"({fixture})")
    project.write(test_closed=source)
    assert "1 passed in" in project.pytest().stdout


IN_USE = "is being accessed by other users"

if CHOICE == "postgresql":  # the other databases are dropped whoever is connected

    def test_database_in_use(paste, recorded):
        """A method of Django leaves a connection on asgiref's thread; the plugin closes it."""
        project = paste("testing/in_use")
        without = project.pytest("-p", "no:pytest_ormbridge", "-W", "default")
        assert IN_USE in without.stdout
        recorded("testing/in_use", said(without, project))
        for options in (["--reuse-db", "--create-db"], []):
            with_plugin = project.pytest(*options)
            assert "1 passed in" in with_plugin.stdout
            assert with_plugin.stderr == ""

    #: How Django calls the command that empties the tables.
    AS_AFTER_A_TEST = {"verbosity": 0, "interactive": False, "reset_sequences": False}

    def test_emptying_tables_waits(transactional_db, monkeypatch):
        """What empties the tables waits for a transaction that another thread left open."""
        monkeypatch.delattr(connection.ops, "sql_flush")  # here it is not Django's

        def leave_a_transaction_open():
            transaction.set_autocommit(False)
            User.objects.count()
            return connection.connection.info.backend_pid

        with ThreadPoolExecutor(1) as thread:
            pid = thread.submit(leave_a_transaction_open).result()
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '50ms'")
                with pytest.raises(CommandError) as failed:
                    call_command("flush", **AS_AFTER_A_TEST)
                assert "canceling statement due to lock timeout" in str(failed.value.__cause__)
                cursor.execute("SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in t%'")
                assert (pid,) in cursor.fetchall()
            thread.submit(connections.close_all).result()
            call_command("flush", **AS_AFTER_A_TEST)
        connection.close()  # and with it goes the lock_timeout

    def test_database_in_use_under_djangos_runner(paste, recorded):
        """Django's runner can't drop the database of an idle worker; BridgeRunner can."""
        project = paste("testing/runner")
        finished = project.manage("test", "--noinput")
        (line,) = re.findall(rf"(?m)^[\w.]+Error: .*{IN_USE}$", finished.stderr)
        recorded("testing/runner", re.sub(r"test_test_ormbridge_\w+", "test_mysite", line))
        project.configure("TEST_RUNNER = 'ormbridge.testing.BridgeRunner'")
        assert IN_USE not in project.manage("test", "--noinput").stderr


# Facts.


def test_communicators_of_channels_need_daphne():
    """``channels.testing`` can't be imported without Daphne; asgiref's communicator can."""
    result = run_python(
        """
        import sys
        sys.modules["daphne"] = None
        import asgiref.testing
        try:
            import channels.testing
        except ImportError as error:
            print(error.name.partition(".")[0])
        """
    )
    assert result.stdout == "daphne\n"
