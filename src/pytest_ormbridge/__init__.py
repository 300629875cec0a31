"""The pytest plugin of ormbridge: fixtures for async tests of code that uses the database.

It stands beside the package, and imports it when a fixture is used, because pytest imports plugins
first of all: before it has measured a line or set a path, and for projects that have no Django. The
package never imports the plugin. What finds leaks (``leaks.py``) is of use to pytest alone, and so
is here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

_LEFT = "the test left something behind:\n"
_ONE, _MANY = "async_db", "async_transactional_db"


@pytest.fixture
def async_db(request: pytest.FixtureRequest, db: None) -> Generator[None, None, None]:
    """Let every database call of the test, sync or async, see one transaction, rolled back after.

    What pytest-django's ``db`` does for synchronous tests. Calls run one at a time.
    """
    _refuse_both(request)
    with _one_transaction(request, alone=True):
        yield


@pytest.fixture
def async_transactional_db(
    request: pytest.FixtureRequest, transactional_db: None
) -> Generator[None, None, None]:
    """Let the test use the pool as it is, in parallel, and commit; the tables are emptied after.

    What pytest-django's ``transactional_db`` does for synchronous tests.
    """
    from ormbridge.testing import many_transactions

    _refuse_both(request)
    _refuse_transaction()
    with many_transactions() as left:
        yield
    _fail(left)


def _refuse_both(request: pytest.FixtureRequest) -> None:
    if {_ONE, _MANY} <= {*request.fixturenames, request.fixturename}:
        pytest.fail(
            f"the test uses both {_ONE}, which rolls back the one transaction of all its calls, "
            f"and {_MANY}, which lets each call commit: use one of them. A fixture that the test "
            "uses, or that is autouse, may have brought in the other; pytest --setup-plan shows it",
            pytrace=False,
        )


def _refuse_transaction() -> None:
    from django.db import connections

    # pytest-django looks for transactional_db before the test runs: it does not know what is asked
    # for by name, nor empties the tables then, and may not even have made a test database.
    if any(each.in_atomic_block for each in connections.all(initialized_only=True)):
        pytest.fail(
            f"{_MANY} was asked for with getfixturevalue(), and so pytest-django has begun a "
            "transaction and will not empty the tables: what calls commit would stay. Name "
            f"{_MANY} as an argument or with usefixtures, or add django_db(transaction=True)",
            pytrace=False,
        )


@contextmanager
def _one_transaction(request: pytest.FixtureRequest, alone: bool) -> Generator[None, None, None]:
    from ormbridge.testing import one_transaction

    with one_transaction(request.node.nodeid, alone) as left:
        yield
    _fail(left)


@pytest.fixture
def no_database_leaks(request: pytest.FixtureRequest) -> Generator[None, None, None]:
    """Fail the test if it leaves a connection, a lease or a transaction open, and say where."""
    from .leaks import watched

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


@pytest.fixture
def async_assert_num_queries() -> Callable[..., AbstractAsyncContextManager[list[dict[str, str]]]]:
    """Return ``assert_num_queries(num, connection=None, info="", *, using="default")``.

    For ``async with``: what pytest-django's ``django_assert_num_queries`` does in synchronous
    tests.
    """
    from ormbridge.testing import assert_num_queries

    return assert_num_queries


@pytest.fixture
def async_assert_max_num_queries(
    async_assert_num_queries: Callable[..., Any],
) -> Callable[..., AbstractAsyncContextManager[list[dict[str, str]]]]:
    """Return the same, for a number of queries that may not be exceeded."""
    return partial(async_assert_num_queries, exact=False)


def _fail(left: list[str]) -> None:
    if left:
        pytest.fail(_LEFT + "\n".join(f"* {each}" for each in left), pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Go on where pytest-django has made the databases, and where it has begun a transaction."""
    if fixturedef.argname == "_django_db_helper":
        value = yield
        _share_transaction(fixturedef, request)
        return value
    if fixturedef.argname != "django_db_setup":
        return (yield)
    from ormbridge.testing.ending import close_everything, free_before_drop

    from .leaks import remember_places

    warnings: list[str] = []

    def warn() -> None:
        for each in warnings:
            request.node.warn(pytest.PytestWarning(each))

    # Have pytest-django find nobody connected to the databases that it drops. Finalizers run in
    # reverse: this one when the databases are dropped, the other one before.
    fixturedef.addfinalizer(warn)
    remember_places()
    value = yield
    free_before_drop(warnings.append)
    fixturedef.addfinalizer(close_everything)
    return value


def _share_transaction(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> None:
    """Let an event loop that a synchronous test starts see the transaction of its ``db``."""
    from django.db import connections

    began = any(each.in_atomic_block for each in connections.all(initialized_only=True))
    is_async = inspect.iscoroutinefunction(getattr(request.node, "obj", None))
    if began and not is_async and _ONE not in request.fixturenames:
        stack = ExitStack()
        # Threads may have connections of their own, as ever.
        stack.enter_context(_one_transaction(request, alone=False))
        fixturedef.addfinalizer(stack.close)
