"""The page ``guide/deployment``: its example, and that its files say what the session runs."""

import asyncio
import gc
import json
import os
import re
import runpy
import shlex
import weakref
from contextlib import suppress
from pathlib import Path

import django
import pytest
import yaml
from django.core.checks import run_checks
from django.core.handlers.asgi import ASGIHandler
from django.db import ConnectionHandler
from django.http import HttpResponse
from django.urls import path

from examples.deployment.stack import parts, ports
from ormbridge import BridgeMiddleware, checks, stats
from tests.core.support import until
from tests.support.http import get

HERE = Path(ports.HERE)
ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "docs/_recorded/stack.json").read_text(encoding="utf-8"))


def file(name):
    return (HERE / name).read_text(encoding="utf-8")


@pytest.mark.django_db(transaction=True, available_apps=[])
async def test_health(load_example, settings, gate, pool_settings, recorded):
    """With all workers taken a process is alive, and not ready."""
    pool_settings(MAX_THREADS=1)
    settings.ROOT_URLCONF = (path("report/", lambda request: HttpResponse(gate())),)
    module = load_example("deployment/health")
    told = [f"{each} {await get(module.application, each)}" for each in ("/alive/", "/ready/")]
    report = asyncio.create_task(get(module.application, "/report/"))
    await gate.entered()
    module.SECONDS = 0.01
    told.append("the only worker is taken:")
    told += [f"{each} {await get(module.application, each)}" for each in ("/alive/", "/ready/")]
    gate.open.set()
    await report
    recorded("deployment/health", "\n".join(told))


async def test_health_has_no_host(load_example, settings):
    """A check by address is answered, which Django refuses: ALLOWED_HOSTS does not name it."""
    settings.ROOT_URLCONF = (path("", lambda request: HttpResponse()),)
    settings.MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
    settings.ALLOWED_HOSTS = ["www.example.com"]
    application = load_example("deployment/health").application
    assert (await get(application, "/"))[:3] == "400"
    assert await get(application, "/alive/") == "200"


async def leaves_a_cycle():
    """Say whether a task group of this Python leaves what the code that fails in it has."""

    async def fail(had):
        thing = asyncio.Event()
        had.append(weakref.ref(thing))
        with suppress(ExceptionGroup):
            async with asyncio.TaskGroup():
                raise ValueError

    had = []
    await fail(had)
    return had[0]() is not None


@pytest.mark.parametrize("bridged", [True, False])
async def test_response_waits_for_the_collector(settings, bridged):
    """Django 6.1 leaves each response in the cycle of a task group, with the middleware or not."""
    sent = []

    async def view(request):
        response = HttpResponse("much")
        sent.append(weakref.ref(response))
        return response

    settings.ROOT_URLCONF = (path("", view),)
    application = BridgeMiddleware(ASGIHandler()) if bridged else ASGIHandler()
    gc.disable()
    try:
        assert await get(application) == "200 much"
        await asyncio.sleep(0)  # the task that listened for the client has ended
        is_kept = django.VERSION >= (6, 1) and await leaves_a_cycle()
        assert (sent[0]() is not None) == is_kept
        gc.collect()
        assert sent[0]() is None
    finally:
        gc.enable()


def middleware_of_ones_own(get_response):
    """Do nothing, in the form that Django's documentation shows first."""

    def middleware(request):
        return get_response(request)

    return middleware


@pytest.mark.django_db(transaction=True, available_apps=[])
async def test_view_under_middleware_waits_for_a_worker(settings, gate, pool_settings):
    """A view as health check stands in line for a worker: synchronous middleware takes one."""
    pool_settings(MAX_THREADS=1)

    async def alive(request):
        return HttpResponse()

    settings.ROOT_URLCONF = (
        path("report/", lambda request: HttpResponse(gate())),
        path("alive/", alive),
    )
    settings.MIDDLEWARE = [f"{__name__}.middleware_of_ones_own"]
    settings.ALLOWED_HOSTS = ["*"]
    application = BridgeMiddleware(ASGIHandler())
    report = asyncio.create_task(get(application, "/report/"))
    await gate.entered()
    check = asyncio.create_task(get(application, "/alive/"))
    await until(lambda: stats().waiting)
    assert not check.done()
    gate.open.set()
    assert await check == "200"
    await report


def test_settings_of_the_project(load_example, monkeypatch, recorded):
    """The settings on the page are those that the project of the stack runs with."""
    monkeypatch.setenv("SECRET_KEY", "of a test")
    project = runpy.run_path(str(HERE / "mysite" / "settings.py"))
    module = load_example("deployment/settings")
    shown = {name: value for name, value in vars(module).items() if name.isupper()}
    assert set(shown) == {"DATABASES", "REDIS", "CHANNEL_LAYERS", "ORMBRIDGE"}
    assert shown == {name: project[name] for name in shown}
    recorded("deployment/settings", "")


# The files of examples/deployment: they say what `nox -s deployment` runs, which is tested in
# tests/servers.


@pytest.mark.parametrize(("port", "names"), [("16432", []), ("6432", ["W005", "W010"])])
def test_port_that_checks_know(load_example, monkeypatch, port, names):
    """Of what W005 and W010 look for, they see nothing behind the port of the page."""
    monkeypatch.setenv("DATABASE_PORT", port)
    (database,) = load_example("deployment/settings").DATABASES.values()
    database |= {"DISABLE_SERVER_SIDE_CURSORS": False, "OPTIONS": {"assume_role": "app"}}
    monkeypatch.setattr(checks, "connections", ConnectionHandler({"default": database}))
    found = [message.id for message in run_checks(tags=["ormbridge"])]
    assert found == [f"ormbridge.{name}" for name in names]


def words(command):
    """Return the parts of a command, with the processes and the address left out."""
    return re.sub(r"(?<!\S)(--workers|-w|--host|-b|--port) \S+ ?", "", " ".join(command)).split()


def seconds(option, command):
    return int(re.search(rf"{option} (\d+)", command)[1])


@pytest.fixture
def services():
    """Return what compose.yaml runs."""
    return yaml.safe_load(file("compose.yaml"))["services"]


def test_container_runs_what_the_session_runs(services):
    """The image starts the server as the session does, and Docker leaves it the time to stop."""
    image = file("Dockerfile").replace("\\\n", "")
    command = json.loads(re.search(r"^CMD (\[.*\])", image, re.MULTILINE)[1])
    assert words(command) == words(parts.SERVERS["gunicorn"].split())
    grace = int(services["app"]["stop_grace_period"].removesuffix("s"))
    assert grace > seconds("--graceful-timeout", " ".join(command))


def test_unit_runs_what_the_session_runs():
    """systemd starts the server as the session does, and leaves it the time to stop."""
    unit = file("mysite.service").replace("\\\n", "")
    command = re.search(r"^ExecStart=/srv/mysite/.venv/bin/(.*)", unit, re.MULTILINE)[1]
    assert words(command.split()) == words(parts.SERVERS["granian"].split())
    stop = int(re.search(r"^TimeoutStopSec=(\d+)", unit, re.MULTILINE)[1])
    assert stop > seconds("--workers-kill-timeout", command)


def test_compose_has_the_ports_of_the_session(services):
    """The parts of compose.yaml have the names and the ports of the session."""
    assert set(services) == {*ports.PORTS, "migrate"}
    said = {
        "postgresql": services["postgresql"]["command"].rpartition("=")[2],
        "redis": re.search(r"--port (\d+)", services["redis"]["command"])[1],
        "pgbouncer": services["app"]["environment"]["DATABASE_PORT"],
        "app": re.search(r"0\.0\.0\.0:(\d+)", file("Dockerfile"))[1],
        "nginx": services["nginx"]["ports"][0].rpartition(":")[2],
    }
    assert {name: int(port) for name, port in said.items()} == ports.PORTS
    for name, part in (("nginx.conf", "app"), ("pgbouncer.ini", "postgresql")):
        assert f"{ports.PORTS[part]}" in file(name)


def test_compose_has_the_variables_of_the_session(services):
    """The project in a container is told what the session tells it, and what it reads is there."""
    session = parts.environment(ports.PORTS, ASGI_THREADS="10").items() - os.environ.items()
    told = services["app"]["environment"]
    # The image has the path, asgi.py and the command of migrate the settings.
    elsewhere = {"PYTHONPATH", "DJANGO_SETTINGS_MODULE"}
    assert {*told, *elsewhere} == {name for name, _ in session} | {"DATABASE_HOST"}
    assert re.search(r"^ENV PYTHONPATH=\S+/examples/deployment ", file("Dockerfile"), re.MULTILINE)
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)", file("mysite/settings.py")))
    assert read - {"ALLOWED_HOSTS"} == {*told} - {"ASGI_THREADS"}
    assert told["REDIS_URL"] == f"redis://redis:{ports.PORTS['redis']}"
    assert told["DATABASE_HOST"] == "pgbouncer"
    # Migrations go to PostgreSQL itself.
    itself = {"DATABASE_HOST": "postgresql", "DATABASE_PORT": str(ports.PORTS["postgresql"])}
    assert services["migrate"]["environment"] == {**told, **itself}


def test_compose_starts_what_the_session_starts(services, tmp_path):
    """Each container has the command of the session, the image what the session installs."""
    commands = {name: shlex.split(each.get("command", "")) for name, each in services.items()}
    host, *redis = parts.redis(tmp_path, ports.PORTS)[2:]
    assert host == ports.HOST
    assert commands["redis"] == ["redis-server", *map(str, redis)]
    assert commands["postgresql"][0] == "postgres"
    assert commands["migrate"][:4] == ["python", "-m", "django", "migrate"]
    inline = services["pgbouncer"]["build"]["dockerfile_inline"]
    bouncer = json.loads(re.search(r"^CMD (.*)", inline, re.MULTILINE)[1])
    assert bouncer == ["pgbouncer", *parts.pgbouncer(tmp_path, ports.PORTS)[1:]]
    session = (ROOT / "noxfile.py").read_text(encoding="utf-8").partition("def deployment(")[2]
    group, extras = re.search(r'install\(session, "(\w+)", extras="(\S+)"\)', session).groups()
    assert f'".[{extras}]" --group {group}\n' in file("Dockerfile")
    # Whatever it names is there.
    for each in services.values():
        assert {*each.get("depends_on", ())} <= {*services}
        for volume in each.get("volumes", ()):
            assert (HERE / volume.partition(":")[0]).is_file()


def test_compose_has_the_versions_that_were_measured(services):
    """The images are of the releases with which the stack was measured."""
    measured = RESULTS["versions"]
    for name, said in (("postgresql", "PostgreSQL"), ("redis", "Redis"), ("nginx", "nginx")):
        tag = services[name]["image"].partition(":")[2]
        assert f"{measured[said]}.".startswith(f"{tag}.")


def test_configuration_of_this_machine():
    """The session changes hosts and ports in the files of the page, and nothing else."""
    own = {name: port + 10_000 for name, port in ports.PORTS.items()}
    for name in ("nginx.conf", "pgbouncer.ini"):
        before = file(name).splitlines()
        after = ports.configuration(name, own).splitlines()
        changed = [new for old, new in zip(before, after, strict=True) if old != new]
        assert changed
        for line in changed:
            assert re.search(r"2[5-8]\d{3}|127\.0\.0\.1", line), line
        assert not any(str(port) in "\n".join(after) for port in ports.PORTS.values())


def test_what_is_missing_is_named(monkeypatch):
    """A program that is not there is named by the package that brings it."""
    monkeypatch.setattr(parts, "PATH", "")
    assert parts.missing() == ["nginx", "pgbouncer", "postgresql", "redis-server"]
