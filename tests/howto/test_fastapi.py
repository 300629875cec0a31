"""The page ``howto/fastapi``: its applications, in uvicorn and by themselves."""

import asyncio
import socket
import subprocess
import sys
import threading
from pathlib import Path

import fastapi
import httpx
import pytest
from django.contrib.auth.models import Group, User
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path, reverse
from fastapi import BackgroundTasks
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import ormbridge
from ormbridge import BridgeMiddleware, database_sync_to_async, stats
from tests.core.gate import GUARD
from tests.core.support import until
from tests.support.examples import example_source
from tests.support.project import Project

transactional = pytest.mark.django_db(transaction=True)


def client(application):
    """Return a client of *application*, without a server between them."""
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


def said(answer):
    return f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}"


# In a server.


@pytest.fixture
def served(tmp_path):
    """Serve the example with uvicorn, beside ``manage.py``; return where."""
    project = Project(tmp_path / "project", "sqlite, on disk")
    project.write(main=example_source("fastapi/main"))
    assert project.manage("migrate").returncode == 0
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # it accepts no connection before the server does
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "main:application", "--fd", str(listening.fileno())],
            cwd=project.path,
            env={"PYTHONPATH": str(Path(ormbridge.__file__).parents[1])},
            pass_fds=[listening.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.terminate()
        server.communicate(timeout=GUARD)


def test_main(served, recorded):
    """uvicorn serves FastAPI's paths, and Django's below them."""
    with httpx.Client(base_url=served, timeout=GUARD) as browser:
        lines = [
            said(browser.post("/api/users/ada")),
            said(browser.get("/api/users/ada")),
            said(browser.get("/api/users/bob")),
        ]
        page = browser.get("/admin/login/")
    assert page.status_code == 200
    lines.append(f"GET /admin/login/: {page.status_code} {page.headers['content-type']}")
    recorded("fastapi/main", "\n".join(lines))


# What they do.


@transactional
async def test_sign_up_that_fails(load_example):
    """An endpoint's block leaves nothing behind if it fails."""
    module = load_example("fastapi/main")
    await Group.objects.acreate(name="team of ada")  # that name is taken
    async with client(module.application) as browser:
        assert (await browser.post("/api/users/ada")).status_code == 500
    assert not await User.objects.aexists()


@transactional
async def test_endpoints_at_the_same_time(gate):
    """Two requests are on two workers."""
    api = fastapi.FastAPI()

    @api.get("/")
    async def endpoint():
        return await database_sync_to_async(gate)()

    async with client(BridgeMiddleware(api)) as browser:
        asked = [asyncio.create_task(browser.get("/")) for _ in range(2)]
        await gate.entered(2)
        gate.open.set()
        answers = {answer.json() for answer in await asyncio.gather(*asked)}
    assert answers == {"ormbridge-worker-1", "ormbridge-worker-2"}


async def test_def_endpoint_runs_on_no_worker():
    """An endpoint that is a plain function runs on a thread of anyio's."""
    api = fastapi.FastAPI()

    @api.get("/")
    def endpoint():
        return threading.current_thread().name

    async with client(BridgeMiddleware(api)) as browser:
        assert (await browser.get("/")).json() == "AnyIO worker thread"
    assert stats().calls == 0


async def test_mounted_django_knows_its_prefix(settings):
    """Below a prefix, Django finds its views and reverses their paths with it."""

    async def view(request):
        return HttpResponse(f"{request.path} {reverse('shown')}")

    settings.ROOT_URLCONF = (path("page/", view, name="shown"),)
    settings.MIDDLEWARE = []
    settings.ALLOWED_HOSTS = ["localhost"]
    api = fastapi.FastAPI()
    api.mount("/django", get_asgi_application())
    async with client(BridgeMiddleware(api)) as browser:
        answer = await browser.get("/django/page/")
    assert answer.text == "/django/page/ /django/page/"


@transactional
async def test_starlette():
    """An application of Starlette is wrapped in the same way."""

    async def count(request):
        return PlainTextResponse(f"{await User.objects.acount()} {stats().calls}")

    application = BridgeMiddleware(Starlette(routes=[Route("/", count)]))
    async with client(application) as browser:
        assert (await browser.get("/")).text == "0 1"


@transactional
async def test_background_task_holds_no_worker():
    """A background task runs when the worker of its request is free again."""
    api = fastapi.FastAPI()
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def later():
        begun.set()
        await may_end.wait()
        await User.objects.acreate(username="later")

    @api.get("/")
    async def endpoint(background: BackgroundTasks):
        await User.objects.acount()
        background.add_task(later)

    async with client(BridgeMiddleware(api)) as browser:
        asked = asyncio.create_task(browser.get("/"))
        await begun.wait()
        await until(lambda: (stats().threads, stats().idle) == (1, 1))
        may_end.set()
        await asked
    assert await User.objects.aexists()
