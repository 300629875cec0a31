"""The pytest plugin in a fresh project, with each plugin for async tests; Django's runner."""

import re
import tomllib
from string import Template

import pytest

from tests.core.support import run_python
from tests.settings import CHOICE
from tests.support.project import CHOICES, ROOT, Project

# One module for each way to run async tests. They must not know of each other.
TESTS = Template(
    """
import pytest
import pytest_asyncio
from asgiref.testing import ApplicationCommunicator
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import User
from django.test import AsyncClient

from ormbridge import BridgeMiddleware, atomic, database_sync_to_async

pytestmark = $mark


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def bob(db):
    return User.objects.create(username="bob")


@$fixture
async def eve(async_db):
    return await User.objects.acreate(username="eve")


@database_sync_to_async
def names():
    return sorted(User.objects.values_list("username", flat=True))


class Consumer(AsyncWebsocketConsumer):
    async def receive(self, text_data):
        async with atomic():
            await User.objects.acreate(username=text_data)
        await self.send(text_data=" ".join(await names()))


@pytest.mark.parametrize("run", [1, 2])
async def test_rolled_back(bob, eve, run, no_database_leaks):
    assert await names() == ["bob", "eve"]
    socket = ApplicationCommunicator(
        BridgeMiddleware(Consumer.as_asgi()), {"type": "websocket", "path": "/"}
    )
    await socket.send_input({"type": "websocket.connect"})
    await socket.receive_output(10)
    await socket.send_input({"type": "websocket.receive", "text": "joe"})
    assert (await socket.receive_output(10))["text"] == "bob eve joe"
    await socket.send_input({"type": "websocket.disconnect", "code": 1000})
    await socket.wait(10)
    assert await User.objects.acount() == 3


async def test_view(bob, async_db, async_client):
    response = await async_client.get("/admin/login/")
    assert response.status_code == 200
    assert await User.objects.acount() == 1


@pytest.mark.parametrize("run", [1, 2])
async def test_committed(async_transactional_db, run, no_database_leaks):
    assert await names() == []
    await User.objects.acreate(username="committed")
    assert await names() == ["committed"]
"""
)
# How the loop of a test lives, and who runs it.
STRICT = {
    "test_strict": ("pytest.mark.asyncio", "pytest_asyncio.fixture"),
    "test_session": (
        'pytest.mark.asyncio(loop_scope="session")',
        'pytest_asyncio.fixture(loop_scope="session")',
    ),
    "test_anyio": ("pytest.mark.anyio", "pytest.fixture"),
}
COUNT = 5
# What runs beside them is not touched.
SYNC = """
from django.contrib.auth.models import User

def test_sync(db):
    assert User.objects.count() == 0
"""


def module(mark, fixture):
    return TESTS.substitute(mark=mark, fixture=fixture)


def passed(result):
    """Return how many tests passed; fail if anything else is said."""
    __tracebackhide__ = True
    found = re.search(r"^(\d+) passed in [\d.]+s$", result.stdout, re.MULTILINE)
    if result.returncode or result.stderr or found is None:
        pytest.fail(f"{result.stdout}\n{result.stderr}", pytrace=False)
    return int(found[1])


@pytest.mark.parametrize("database", CHOICES)
def test_strict_mode_session_loop_and_anyio(tmp_path, database):
    """pytest-asyncio's strict mode, a loop for the session, and anyio's plugin, in one run."""
    project = Project(tmp_path, database, mode="strict")
    project.write(test_sync=SYNC, **{name: module(*how) for name, how in STRICT.items()})
    assert passed(project.pytest()) == 3 * COUNT + 1


@pytest.mark.parametrize("database", CHOICES)
def test_auto_mode_on_several_processes(tmp_path, database):
    """pytest-asyncio's auto mode, on two processes of pytest-xdist."""
    project = Project(tmp_path, database)
    project.write(test_auto=module("[]", "pytest.fixture"))
    assert passed(project.pytest("-n", "2")) == COUNT


LEAK = """
import asyncio
from django.contrib.auth.models import User

async def leak():
    await asyncio.to_thread(User.objects.count)

def test_leak($fixtures):
    asyncio.run(leak())
"""


BACKENDS = """
import asyncio
import pytest

@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param

@pytest.mark.anyio
async def test_is_on_asyncio(anyio_backend):
    asyncio.get_running_loop()
"""


@pytest.mark.parametrize(("mode", "green"), [("strict", 1), ("auto", 2)])
def test_backends_of_anyio(tmp_path, mode, green):
    """In pytest-asyncio's auto mode, anyio's tests on trio are run on asyncio, and are green."""
    project = Project(tmp_path, mode=mode)
    project.write(test_backends=BACKENDS)
    assert f"{green} passed in" in project.pytest("--tb=no").stdout.replace("1 failed, ", "")


BOTH = """
import pytest

@pytest.fixture$autouse
def brought($brought):
    pass

$mark
${kind}def test_both($fixtures):
    raise AssertionError("this test must not run")
"""


# What a fixture of the test's module brings in, what the test asks for, and whether the fixture is
# there for each test.
WAYS_TO_BOTH = [
    ("", "async_db, async_transactional_db", False),
    ("", "async_transactional_db, async_db", False),
    ("", "db, async_db, transactional_db, async_transactional_db", False),
    ("", "async_transactional_db, transactional_db, async_db, db", False),
    ("async_db", "async_transactional_db", True),
    ("async_transactional_db", "async_db", True),
    ("async_db", "async_transactional_db, brought", False),
]


def test_both_fixtures_are_refused(tmp_path):
    """A test with both fixtures is an error that names both, whoever brings them in."""
    project = Project(tmp_path)
    ways = [(kind, *way) for kind in ("", "async ") for way in WAYS_TO_BOTH]
    for number, (kind, brought, fixtures, autouse) in enumerate(ways):
        source = Template(BOTH).substitute(
            autouse="(autouse=True)" if autouse else "",
            brought=brought,
            mark="@pytest.mark.asyncio" if kind else "",
            kind=kind,
            fixtures=fixtures,
        )
        project.write(**{f"test_both_{number}": source, f"test_both_{number}_next": SYNC})
    output = project.pytest("--tb=short").stdout
    assert f"{len(ways)} passed, {len(ways)} errors in" in output
    _, *errors = re.split(r"(?m)^_+ ERROR at setup of test_both _+$", output)
    assert len(errors) == len(ways)
    for error in errors:
        assert "the test uses both async_db, which rolls back" in error
        assert "and async_transactional_db, which lets each call commit: use one of them" in error
    assert "Traceback" not in output


@pytest.mark.parametrize("first", ["async_db", "async_transactional_db"])
def test_both_fixtures_are_refused_where_one_is_asked_for_by_name(tmp_path, first):
    """Also where the test itself asks for the second one."""
    second = {"async_db": "async_transactional_db"}.get(first, "async_db")
    project = Project(tmp_path)
    project.write(
        test_both=f"def test_both(request, {first}):\n    request.getfixturevalue({second!r})\n",
        test_sync=SYNC,
    )
    output = project.pytest("--tb=short").stdout
    assert "1 failed, 1 passed in" in output
    assert "the test uses both async_db, which rolls back" in output


BY_NAME = """
import pytest
from django.contrib.auth.models import User

@pytest.fixture(autouse=True)
def database(request):
    commits = request.node.name != "test_next"
    request.getfixturevalue("async_transactional_db" if commits else "async_db")

@pytest.mark.asyncio
async def test_commits():
    await User.objects.acreate(username="left")

@pytest.mark.django_db(transaction=True)
@pytest.mark.asyncio
async def test_marked():
    await User.objects.acreate(username="emptied")

@pytest.mark.asyncio
async def test_next():
    assert await User.objects.acount() == 0
"""


def test_tests_that_commit_asked_for_by_name(tmp_path):
    """Where pytest-django would not empty the tables, the fixture is refused."""
    project = Project(tmp_path)
    project.write(test_by_name=BY_NAME)
    output = project.pytest("--tb=short").stdout
    assert "2 passed, 1 error in" in output
    assert "async_transactional_db was asked for with getfixturevalue()" in output


@pytest.mark.parametrize("database", CHOICES)
def test_synchronous_test_that_starts_a_loop(tmp_path, database):
    """A command that calls ``asyncio.run`` sees the rows of a test with ``db``, and leaves none."""
    project = Project(tmp_path, database)
    project.write(test_loop=LOOP, test_sync=SYNC)
    for options in ([], ["-n", "2"]):  # without --reuse-db, which would leave the database behind
        assert "7 passed in" in project.pytest(*options).stdout


LOOP = """
import asyncio
import pytest
from django.contrib.auth.models import User
from django.test import TestCase
from ormbridge import atomic

def command():
    async def work():
        async with atomic():
            await User.objects.acreate(username="new")
        return await User.objects.acount()
    return asyncio.run(work())

@pytest.mark.parametrize("run", [1, 2])
def test_fixture(db, run, no_database_leaks):
    User.objects.create(username="old")
    assert command() == 2

@pytest.mark.django_db
@pytest.mark.parametrize("run", [1, 2])
def test_mark(run):
    User.objects.create(username="old")
    assert command() == 2

@pytest.mark.parametrize("run", [1, 2])
def test_async_db(async_db, run):
    User.objects.create(username="old")
    assert command() == 2
"""


def test_leak_fails_the_test(tmp_path):
    """What no_database_leaks finds is an error of the test, and disturbs nothing else."""
    project = Project(tmp_path)
    project.write(
        test_leak=LEAK.replace("$fixtures", "transactional_db, no_database_leaks"),
        test_sync=SYNC,
    )
    result = project.pytest()
    assert "2 passed, 1 error in" in result.stdout
    assert re.search(
        r"^\* a connection to 'default' is still open on asyncio_0, which is no worker, "
        r"opened at .*test_leak\.py:6 in leak, called from .*test_leak\.py:9 in test_leak$",
        result.stdout,
        re.MULTILINE,
    )


if CHOICE == "postgresql":  # the other databases are dropped whoever is connected

    def test_database_in_use_is_dropped(tmp_path):
        """A connection that is still open is terminated, and a warning says where it was opened."""
        project = Project(tmp_path)
        # Something refers to the connection, or Python might free and so close it.
        query = "lambda: (User.objects.count(), open.append(connections['default']))"
        source = LEAK.replace("$fixtures", "transactional_db").replace("User.objects.count", query)
        project.write(test_leak=f"from django.db import connections\nopen = []\n{source}")
        result = project.pytest("-W", "default")
        assert "1 passed, " in result.stdout
        assert re.search(
            r"PytestWarning: 'test_\w+' was still in use, by a connection opened on asyncio_0 at "
            r".*test_leak\.py:8 in leak\.<locals>\.<lambda>: idle, "
            r"no application_name, last statement '.*'\. It was terminated, so that the database "
            r"could be dropped",
            result.stdout,
        )
        assert "Error when trying to teardown" not in result.stdout


def test_plugin_is_declared():
    """pytest finds the plugin by its entry point, under the name of its module."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert declared == {"pytest11": {"pytest_ormbridge": "pytest_ormbridge"}}


def test_unused_plugin_imports_nothing():
    """To load the plugin imports neither Django nor the package."""
    result = run_python(
        """
        import sys, pytest_ormbridge
        print(sorted({name.partition(".")[0] for name in sys.modules} & {"django", "ormbridge"}))
        """
    )
    assert result.stdout == "[]\n"


# Django's own test cases and runner.

CASES = """
import asyncio
from urllib.request import urlopen

from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.test import LiveServerTestCase, TestCase, TransactionTestCase, override_settings
from django.urls import path

from ormbridge import atomic, database_sync_to_async

count = database_sync_to_async(User.objects.count)
create = database_sync_to_async(User.objects.create)


async def use(case, before):
    case.assertEqual(await count(), before)
    await create(username="made by the bridge")
    async with atomic():
        await User.objects.acreate(username="made by an a-method")
    case.assertEqual(await User.objects.acount(), before + 2)


class RolledBack(TestCase):
    @classmethod
    def setUpTestData(cls):
        User.objects.create(username="bob")

    async def test_one(self):
        await use(self, 1)

    async def test_two(self):
        await use(self, 1)


class Committed(TransactionTestCase):
    async def test_one(self):
        await use(self, 0)

    async def test_two(self):
        await use(self, 0)


class Parallel(TransactionTestCase):
    async def test_workers(self):
        $parallel


async def async_view(request):
    return HttpResponse(str(await count()))


def sync_view(request):
    return HttpResponse(str(async_to_sync(count)()))


urlpatterns = [path("async", async_view), path("sync", sync_view)]


@override_settings(ROOT_URLCONF=__name__)
class Live(LiveServerTestCase):
    def test_views(self):
        User.objects.create(username="bob")
        for name in ("async", "sync"):
            with urlopen(f"{self.live_server_url}/{name}") as response:
                self.assertEqual(response.read(), b"1")
"""
ON_WORKERS = """
        calls = [
            database_sync_to_async(User.objects.count, thread_sensitive=False)() for _ in range(3)
        ]
        self.assertEqual(await asyncio.gather(*calls), [0, 0, 0])
"""


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("database", CHOICES)
def test_djangos_runner(tmp_path, database, parallel):
    """TestCase, TransactionTestCase and LiveServerTestCase need no helper, nor does --parallel."""
    project = Project(tmp_path, database)
    project.write(tests=CASES.replace("$parallel", "await use(self, 0)"))
    result = project.manage("test", *(["--parallel", "2"] if parallel else []))
    assert result.returncode == 0, result.stderr
    assert "Ran 6 tests" in result.stderr
    assert "Warning" not in result.stderr


@pytest.mark.parametrize(
    "runner", ["django.test.runner.DiscoverRunner", "ormbridge.testing.BridgeRunner"]
)
def test_workers_under_djangos_runner(tmp_path, runner):
    """Idle workers keep PostgreSQL from dropping the database; BridgeRunner ends them before."""
    project = Project(tmp_path)
    project.write(tests=CASES.replace("$parallel", ON_WORKERS.strip()))
    project.configure(f"TEST_RUNNER = {runner!r}")
    result = project.manage("test", "--noinput")
    fails = CHOICE == "postgresql" and runner.startswith("django")
    assert ("is being accessed by other users" in result.stderr) is fails
    assert (result.returncode != 0) is fails, result.stderr
    if fails:
        project.configure("TEST_RUNNER = 'ormbridge.testing.BridgeRunner'")
        result = project.manage("test", "--noinput")
        assert result.returncode == 0
    # It closes them; nobody has to be disconnected.
    assert "was still in use" not in result.stdout + result.stderr


ISOLATED = Template(
    """
from unittest import IsolatedAsyncioTestCase

import pytest
from django.contrib.auth.models import User
from django.test import TestCase

from ormbridge import database_sync_to_async


$mark
class Isolated($bases):
    async def asyncSetUp(self):
        await User.objects.acreate(username="ada")

    async def test_one(self):
        await database_sync_to_async(User.objects.create)(username="bob")
        assert [each.username async for each in User.objects.order_by("pk")] == ["ada", "bob"]

    async def test_two(self):
        await self.test_one()
"""
)


def isolated(path, database=CHOICES[-1], mark="", bases="IsolatedAsyncioTestCase"):
    """Return a project with a test case of unittest that writes in two tests."""
    project = Project(path, database)
    project.write(test_it=ISOLATED.substitute(mark=mark, bases=bases))
    return project


@pytest.mark.parametrize("database", CHOICES)
def test_isolated_test_case_with_async_db(tmp_path, database):
    """With ``async_db`` a test case of unittest is rolled back, and what asyncSetUp wrote, too."""
    project = isolated(tmp_path, database, "@pytest.mark.usefixtures('async_db')")
    assert passed(project.pytest()) == 2


@pytest.mark.parametrize("database", CHOICES)
def test_isolated_test_case_is_not_rolled_back(tmp_path, database):
    """With pytest-django's mark alone, what the first test writes is there in the second."""
    project = isolated(tmp_path, database, "@pytest.mark.django_db")
    result = project.pytest("--tb=short")
    assert "1 failed, 1 passed" in result.stdout
    assert "IntegrityError" in result.stdout


def test_isolated_test_case_is_refused(tmp_path):
    """Without a mark, pytest-django lets it to no database."""
    result = isolated(tmp_path).pytest("--tb=short")
    assert "2 failed" in result.stdout
    assert "Database access not allowed" in result.stdout


def test_isolated_test_case_under_djangos_runner(tmp_path):
    """Django's runner makes no test database for it: it writes into that of the settings."""
    project = isolated(tmp_path, "sqlite, on disk")
    assert project.manage("migrate", "-v", "0").returncode == 0
    project.manage("test")
    counted = project.manage(
        "shell",
        "-v",
        "0",
        "-c",
        "from django.contrib.auth.models import User as U; "
        "print(*U.objects.values_list('username', flat=True))",
    )
    assert counted.stdout.split() == ["ada", "bob"]


@pytest.mark.parametrize("database", CHOICES)
def test_isolated_test_case_mixed_in(tmp_path, database):
    """As a base beside TestCase, what asyncSetUp writes goes through another connection."""
    project = isolated(tmp_path, database, bases="TestCase, IsolatedAsyncioTestCase")
    result = project.pytest("--tb=short")
    assert "1 failed, 1 passed" in result.stdout
    # It is there already; SQLite does not even let it in beside the transaction of the class.
    _, _, shown = result.stdout.partition(": in asyncSetUp\n")
    assert re.search("IntegrityError|is locked", shown)


FIXTURES = """
import pytest
from django.contrib.auth.models import User

@pytest.fixture(scope="$scope")
async def ada(async_db):
    return await User.objects.acreate(username="ada")

@pytest.mark.asyncio
async def test_ada(ada):
    assert ada.username == "ada"
"""


def test_async_fixture_that_no_plugin_runs(tmp_path):
    """In strict mode pytest-asyncio leaves a fixture of pytest alone; it takes its own, or all."""
    source = FIXTURES.replace("$scope", "function")
    strict = Project(tmp_path / "strict", mode="strict")
    strict.write(test_it=source)
    said = "'test_ada' requested an async fixture 'ada', with no plugin or hook that handled it."
    assert said in strict.pytest("--tb=short").stdout
    own = source.replace("@pytest.fixture", "@pytest_asyncio.fixture")
    strict.write(test_it=f"import pytest_asyncio{own}")
    assert passed(strict.pytest()) == 1
    auto = Project(tmp_path / "auto")
    auto.write(test_it=source)
    assert passed(auto.pytest()) == 1


LOOPS = """
import asyncio
import pytest

loops = []

@pytest.mark.parametrize("run", [1, 2])
@pytest.mark.asyncio(loop_scope="session")
async def test_loop(run):
    loops.append(asyncio.get_running_loop())
    assert loops == [loops[0]] * run
"""


def test_event_loop_of_a_test(tmp_path):
    """pytest-asyncio has no fixture ``event_loop``; tests share a loop by its ``loop_scope``."""
    project = Project(tmp_path, mode="strict")
    project.write(test_it="async def test_loop(event_loop):\n    pass")
    assert "fixture 'event_loop' not found" in project.pytest().stdout
    project.write(test_it=LOOPS)
    assert passed(project.pytest()) == 2


SET_UP = """
import pytest
from django.contrib.auth.models import User

@pytest.fixture(scope="session")
def django_db_setup(django_db_setup, django_db_blocker):
    with django_db_blocker.unblock():
        User.objects.create(username="eve")
"""
FINDS = """
import pytest
from django.contrib.auth.models import User

@pytest.mark.parametrize("run", [1, 2])
async def test_eve(run, async_db):
    eve = await User.objects.aget()
    await eve.adelete()
"""


def test_fixture_of_a_wider_scope(tmp_path):
    """A fixture of a module gets no ``async_db``; what django_db_setup writes, each test finds."""
    project = Project(tmp_path)
    project.write(test_it=FIXTURES.replace("$scope", "module"))
    said = (
        "ScopeMismatch: You tried to access the function scoped fixture async_db with a module "
        "scoped request object."
    )
    assert said in " ".join(project.pytest("--tb=short").stdout.split())
    project.write(test_it=FINDS, conftest=SET_UP)
    assert passed(project.pytest()) == 2
