"""Fixtures that all tests share, and the directory of a run."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import SyncToAsync
from django.db import connections

from ormbridge.core import process
from ormbridge.core.worker import Worker
from tests.core.gate import GUARD, Gate
from tests.core.settings import RUN_DIRECTORY


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory of this run's SQLite files."""
    RUN_DIRECTORY.mkdir(exist_ok=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the directory of this run's SQLite files."""
    shutil.rmtree(RUN_DIRECTORY, ignore_errors=True)


@pytest.fixture
def connection_settings(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Change settings of a database for one test: ``connection_settings(CONN_MAX_AGE=0)``.

    Connections that are opened after the change have it. ``using`` names another alias.
    """

    def change(using: str = "default", **values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setitem(connections.settings[using], name, value)

    return change


@pytest.fixture(autouse=True)
def own_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test a pool of its own, and end the threads of it."""
    monkeypatch.delenv("ASGI_THREADS", raising=False)
    yield
    process._pool = None
    for pool in process.live_pools():  # new settings may have replaced one
        process.end(pool)


@pytest.fixture(autouse=True)
def close_connections_of_asgiref() -> Iterator[None]:
    """Close what a test left open on asgiref's one thread.

    Nobody can drop a database in use, and a test without a database must not meet a connection.
    """
    yield
    SyncToAsync.single_thread_executor.submit(connections.close_all).result(GUARD)


@pytest.fixture
def pool_settings(settings: Any) -> Callable[..., None]:
    """Set ``settings.ORMBRIDGE`` for one test: ``pool_settings(MAX_THREADS=1)``."""

    def change(**values: Any) -> None:
        settings.ORMBRIDGE = values

    return change


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Return a function that blocks its thread until the test lets it go."""
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the system refuse the next threads of workers: ``refuse(2)``.

    It does what is given as ``first`` before it refuses one. What was refused once never starts, as
    since Python 3.13.
    """
    original = Worker.start
    left: list[Callable[[], object]] = []
    refused = set[Worker]()

    def start(worker: Worker) -> None:
        if left or worker in refused:
            refused.add(worker)
            if left:
                left.pop()()
            raise RuntimeError("can't start new thread")
        original(worker)

    def refuse(number: int = 1, first: Callable[[], object] = list) -> None:
        left[:] = [first] * number

    monkeypatch.setattr(Worker, "start", start)
    return refuse
