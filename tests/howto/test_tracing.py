"""The page ``howto/tracing``: Sentry and OpenTelemetry, each in a process of its own."""

import gzip
import json
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.core.support import ROOT
from tests.guide.conftest import run_python
from tests.settings import CHOICE, CHOICES
from tests.support.examples import example_source

SETTINGS = """
ALLOWED_HOSTS = ["*"]
DATABASES = {{"default": {database!r}}}
ROOT_URLCONF = "mysite.urls"
SECRET_KEY = "for tests only"
"""
URLS = """
from django.db import connection
from django.http import HttpResponse
from django.urls import path
from ormbridge import database_sync_to_async

@database_sync_to_async
def query(name):
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 'for {name}'")

async def view(request, name):
    await query(name)
    return HttpResponse(name)

urlpatterns = [path("<name>/", view)]
"""
ASK = """
import asyncio
from tests.support.http import get

async def ask():
    await asyncio.gather(get(application, "/ada/"), get(application, "/bob/"))

asyncio.run(ask())
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that runs *source* in a project whose settings end with *more*."""
    database = CHOICES[CHOICE]()
    del database["TEST"]
    database["NAME"] = "postgres" if CHOICE == "postgresql" else ":memory:"  # it reads no table
    package = tmp_path / "mysite"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "urls.py").write_text(URLS, encoding="utf-8")

    def run(source, more="", **environment):
        settings = SETTINGS.format(database=database) + more
        (package / "settings.py").write_text(settings, encoding="utf-8")
        paths = f"{ROOT / 'src'}:{ROOT}"
        done = run_python(
            tmp_path, source, stderr=subprocess.STDOUT, PYTHONPATH=paths, **environment
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


# Sentry.


@pytest.fixture
def sentry():
    """Be a server of Sentry's on this machine; return its address and what it was sent."""
    items = []

    class Ingest(BaseHTTPRequestHandler):
        """Keep the items of each envelope."""

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers["content-encoding"] == "gzip":
                body = gzip.decompress(body)
            for line in body.splitlines():
                item = json.loads(line)
                if item.get("type") == "transaction" and "spans" in item:
                    items.append(item)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Ingest)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://key@127.0.0.1:{server.server_port}/1", items
    server.shutdown()
    server.server_close()


APPLICATION = """
import os
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
from django.core.asgi import get_asgi_application
from ormbridge import BridgeMiddleware
application = BridgeMiddleware(get_asgi_application())
"""


def test_sentry(run, sentry, recorded):
    """Each request is a transaction of Sentry's, with its own query."""
    address, items = sentry
    flush = "import sentry_sdk\nsentry_sdk.flush()"
    settings = example_source("tracing/sentry_settings")
    run(APPLICATION + ASK + flush, more=settings, SENTRY_DSN=address)
    lines = []
    for item in items:
        queries = [span["description"] for span in item["spans"] if span["op"] == "db"]
        made = [each for each in queries if each.startswith("SELECT 'for")]
        lines.append(f"{item['request']['url']}: {made}")
    recorded("tracing/sentry_settings", "\n".join(sorted(lines)))


def test_sentry_without_an_address(run):
    """Without the variable Sentry sends nothing, and nothing fails."""
    assert run(APPLICATION + ASK, more=example_source("tracing/sentry_settings")) == ""


# OpenTelemetry.

if CHOICE == "postgresql":

    def test_opentelemetry(run, recorded):
        """Each request has a span, and below it that of its query."""
        output = run(example_source("tracing/opentelemetry_asgi") + ASK + "provider.shutdown()")
        spans = list(decoded(output))
        requests = {
            each["context"]["span_id"]: each for each in spans if each["kind"] == "SpanKind.SERVER"
        }
        lines = []
        for span in spans:
            statement = span["attributes"].get("db.statement", "")
            if statement.startswith("SELECT 'for"):
                request = requests[span["parent_id"]]
                lines.append(f"{request['attributes']['http.target']}: {statement}")
        recorded("tracing/opentelemetry_asgi", "\n".join(sorted(lines)))


def decoded(text):
    """Yield the JSON objects that stand one after the other in *text*."""
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        found, end = decoder.raw_decode(text)
        yield found
        text = text[end:]
