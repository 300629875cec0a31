"""The page ``reference/checks``: its examples, and that it shows what the checks say."""

import re
import sys
import types
from pathlib import Path

import pytest
from channels.routing import ProtocolTypeRouter
from django.core.checks import run_checks
from django.core.handlers.asgi import ASGIHandler

from ormbridge import BridgeMiddleware
from tests.core.support import run_python
from tests.support.examples import example_source

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "checks.md"


def test_warnings(recorded):
    """``manage.py check`` shows the ten warnings, each with its id and a hint."""
    result = run_python(example_source("checks/warned"))
    assert (result.returncode, result.stdout) == (0, "")
    recorded("checks/warned", result.stderr)


def test_remedied(recorded):
    """With each setting put right, ``manage.py check`` has nothing to say."""
    result = run_python(example_source("checks/remedied"))
    assert (result.returncode, result.stderr) == (0, "")
    recorded("checks/remedied", result.stdout)


def test_page_shows_each_message():
    """Each warning has its section, which begins with what ``manage.py check`` prints of it."""
    printed = run_python(example_source("checks/warned")).stderr
    messages = re.findall(r"^(.*\(ormbridge\.(W\d+)\).*)\n\t(HINT: .*)$", printed, re.MULTILINE)
    assert sorted(name for _, name, _ in messages) == [f"W{number:03}" for number in range(1, 11)]
    without_comments = re.compile(r"^%.*\n\n?", re.MULTILINE).sub
    page = without_comments("", PAGE.read_text(encoding="utf-8"))
    for message, name, hint in messages:
        section = page.partition(f"(ormbridge-{name.lower()})=\n\n## {name}: ")[2]
        shown = section.partition("\n\n")[2].partition("\n\n")[0]
        assert shown == f"```text\n{message}\n    {hint}\n```"


@pytest.mark.parametrize("wrapped", [False, True])
def test_channels_router(settings, connection_settings, monkeypatch, wrapped):
    """A Channels application is looked through: what matters is around its "http"."""
    inner = BridgeMiddleware(ASGIHandler()) if wrapped else ASGIHandler()
    module = types.ModuleType("project.asgi")
    module.application = ProtocolTypeRouter({"http": inner, "websocket": application})
    monkeypatch.setitem(sys.modules, module.__name__, module)
    settings.ASGI_APPLICATION = "project.asgi.application"
    connection_settings(CONN_MAX_AGE=60)
    warned = {message.id for message in run_checks(tags=["ormbridge"])}
    assert warned == (set() if wrapped else {"ormbridge.W002"})


async def application(scope, receive, send):
    """Stand for an ASGI application."""
