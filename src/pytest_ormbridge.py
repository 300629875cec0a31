"""The pytest plugin of ormbridge: fixtures for async tests of code that uses the database.

It stands beside the package, and imports it when a fixture is used, because pytest imports plugins
first of all: before it has measured a line or set a path, and for projects that have no Django.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

_LEFT = "the test left something behind:\n"


@pytest.fixture
def async_db(request: pytest.FixtureRequest, db: None) -> Generator[None, None, None]:
    """Let every database call of the test, sync or async, see one transaction, rolled back after.

    What pytest-django's ``db`` does for synchronous tests. Calls run one at a time.
    """
    from ormbridge.testing import one_transaction

    with one_transaction(request.node.nodeid) as left:
        yield
    _fail(left)


@pytest.fixture
def async_transactional_db(transactional_db: None) -> Generator[None, None, None]:
    """Let the test use the pool as it is, in parallel, and commit; the tables are emptied after.

    What pytest-django's ``transactional_db`` does for synchronous tests.
    """
    from ormbridge.testing import many_transactions

    with many_transactions() as left:
        yield
    _fail(left)


@pytest.fixture
def no_database_leaks(request: pytest.FixtureRequest) -> Generator[None, None, None]:
    """Fail the test if it leaves a connection, a lease or a transaction open, and say where."""
    from ormbridge.leaks import watched

    with watched() as left:
        yield
    _fail(left)


@pytest.fixture
def async_capture_on_commit_callbacks() -> Callable[..., AbstractAsyncContextManager[list[Any]]]:
    """Return ``capture_on_commit_callbacks(using="default", execute=False)``, for ``async with``.

    What pytest-django's ``django_capture_on_commit_callbacks`` does in synchronous tests.
    """
    from ormbridge.testing import capture_on_commit_callbacks

    return capture_on_commit_callbacks


def _fail(left: list[str]) -> None:
    if left:
        pytest.fail(_LEFT + "\n".join(f"* {each}" for each in left), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Have pytest-django find nobody connected to the databases that it drops."""
    if fixturedef.argname != "django_db_setup":
        return (yield)
    from ormbridge.ending import close_everything, free_before_drop
    from ormbridge.leaks import remember_places

    warnings: list[str] = []

    def warn() -> None:
        for each in warnings:
            request.node.warn(pytest.PytestWarning(each))

    # Finalizers run in reverse: this one when the databases are dropped, the other one before.
    fixturedef.addfinalizer(warn)
    remember_places()
    value = yield
    free_before_drop(warnings.append)
    fixturedef.addfinalizer(close_everything)
    return value
