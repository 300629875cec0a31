"""Channels' live server for tests with a browser: what it needs of the test database."""

import os
import subprocess
import sys

import pytest

from tests.core.gate import PROCESS_GUARD
from tests.settings import CHOICES, SERVER_NAME

SQLITE = {"ENGINE": "django.db.backends.sqlite3", "NAME": "real.sqlite3"}
SETTINGS = """
import os
DATABASES = {{"default": {database!r}}}
INSTALLED_APPS = [
    "daphne", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.staticfiles"
]
ASGI_APPLICATION = "served.application"
STATIC_URL = "static/"
USE_TZ = True
"""
SERVED = """
import os
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "live_settings")
get_asgi_application()

from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import User
from ormbridge import BridgeMiddleware, database_sync_to_async

class Consumer(AsyncWebsocketConsumer):
    async def connect(self):
        await self.accept()
        user = await database_sync_to_async(User.objects.get)()
        await self.send(text_data=f"Hello {user.username}")

application = BridgeMiddleware(Consumer.as_asgi())
"""
TEST = """
import multiprocessing
import os
multiprocessing.set_start_method(os.environ["HOW"])

from channels.testing import ChannelsLiveServerTestCase
from django.contrib.auth.models import User
from websockets.sync.client import connect

class LiveTest(ChannelsLiveServerTestCase):
    def test_greeting(self):
        User.objects.create(username="ada")
        with connect(self.live_server_ws_url) as socket:
            self.assertEqual(socket.recv(), "Hello ada")
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the test in a project, and returns what that printed."""

    def run(name, how, database=SQLITE):
        for file, text in {
            "live_settings": SETTINGS.format(database={**database, "TEST": {"NAME": name}}),
            "served": SERVED,
            "test_live": TEST,
        }.items():
            (tmp_path / f"{file}.py").write_text(text, encoding="utf-8")
        finished = subprocess.run(
            [sys.executable, "-m", "django", "test", "test_live", "--settings=live_settings"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([".", *sys.path]), "HOW": how},
            capture_output=True,
            text=True,
            timeout=PROCESS_GUARD,
            check=False,
        )
        return finished.stdout + finished.stderr

    return run


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_live_server_with_a_file(run, how):
    """With a file for the test database, its process serves what the test has written."""
    said = run("test.sqlite3", how)
    assert "\nOK\n" in said, said


def test_live_server_in_memory(run):
    """A database in memory, which SQLite's test database is, cannot be shared with a process."""
    said = run(None, "fork")
    assert "ChannelLiveServerTestCase can not be used with in memory databases" in said


@pytest.mark.parametrize(("named", "result"), [(False, "test_test_"), (True, "\nOK\n")])
def test_live_server_that_is_forked(run, named, result):
    """A forked process looks for ``test_test_…`` unless the settings name the database."""
    database = {**CHOICES["postgresql"](), "NAME": f"{SERVER_NAME}_live"}
    said = run(f"test_{SERVER_NAME}_live" if named else None, "fork", database)
    assert result in said, said
