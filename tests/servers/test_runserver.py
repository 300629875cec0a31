"""``manage.py runserver`` on the project of the page ``start``, without Daphne and with it."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from socket import create_connection

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.core.gate import GUARD, PROCESS_GUARD
from tests.support.reader import Reader, reading, steps

DAPHNE = """
INSTALLED_APPS.insert(0, "daphne")
ASGI_APPLICATION = "mysite.asgi.application"
"""


@pytest.fixture
def reader(tmp_path) -> Iterator[Reader]:
    """Return somebody who has written all files of the page, and has started no server."""
    with reading(tmp_path / "empty") as reader:
        for kind, name, text in steps():
            if kind != "$":
                reader.write(name, text)
            elif name.startswith(("cd ", "echo ")) or "django" in name or "migrat" in name:
                reader.run(name)
        yield reader


@contextmanager
def runserver(reader: Reader) -> Iterator[str]:
    """Start the server; yields what it says as it starts."""
    process = subprocess.Popen(
        [sys.executable, "manage.py", "runserver", "--noreload", str(reader.port)],
        cwd=reader.folder,
        env=reader.environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        said = ""
        for line in process.stdout:
            said += line
            if "Quit the server" in line:
                break
        while True:  # it says so a moment before it listens
            try:
                create_connection(("127.0.0.1", reader.port), GUARD).close()
            except ConnectionRefusedError:
                assert process.poll() is None, said
            else:
                break
        yield said
    finally:
        process.terminate()
        process.communicate(timeout=PROCESS_GUARD)


def test_runserver_knows_no_sockets(reader):
    """Without Daphne it is WSGI: views answer, a socket is not found, asgi.py is not loaded."""
    reader.write("mysite/asgi.py", "raise AssertionError('asgi.py is loaded')")
    with runserver(reader) as said:
        assert "ASGI" not in said
        assert reader.run("curl --silent http://127.0.0.1:8000/") == '{"entries": []}'
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{reader.port}/sign/")
    assert refused.value.response.status_code == 404


def test_daphne_that_is_not_the_first(reader):
    """Behind Django's static files, Daphne has manage.py stop."""
    settings = reader.folder / "mysite/settings.py"
    behind = DAPHNE.replace(".insert(0, ", ".append(")
    settings.write_text(settings.read_text(encoding="utf-8") + behind, encoding="utf-8")
    said = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=reader.folder,
        env=reader.environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=PROCESS_GUARD,
        check=False,
    ).stderr
    assert "(daphne.E001) Daphne must be listed before django.contrib.staticfiles" in said


def test_runserver_with_daphne(reader):
    """With Daphne in the settings it serves what asgi.py has, sockets and middleware included."""
    settings = reader.folder / "mysite/settings.py"
    settings.write_text(settings.read_text(encoding="utf-8") + DAPHNE, encoding="utf-8")
    with runserver(reader) as said:
        assert "Starting ASGI/Daphne" in said
        assert reader.run("python3 mysite/talk.py") == '{"entries": 1}\n'
