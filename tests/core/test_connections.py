"""What happens to connections: cleaned before and after, kept, discarded, reset."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from unittest import mock

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created
from django.test.utils import CaptureQueriesContext

from ormbridge.core import connections as connections_module
from ormbridge.core.bridge import aclose_old_connections, database_sync_to_async
from ormbridge.core.connections import (
    SWEEP,
    ThreadConnections,
    transaction_open,
)
from ormbridge.core.process import stats
from tests.core.gate import GUARD, Gate
from tests.core.support import CHOICE, leave_everything, raw, what_is_there

pytestmark = pytest.mark.django_db(transaction=True)


one_worker = pytest.fixture(autouse=True)(lambda pool_settings: pool_settings(MAX_THREADS=1))


def wrapper():
    User.objects.exists()
    return connections["default"]


def server_says_transaction_open():
    return transaction_open(connections["default"])


async def test_connection_persists_between_calls():
    """With CONN_MAX_AGE above 0 calls that follow each other share a connection."""
    assert await database_sync_to_async(raw)() is await database_sync_to_async(raw)()


async def test_conn_max_age_zero_closes_after_each_call(connection_settings):
    """With CONN_MAX_AGE = 0 the connection is closed when the call ends, as Django says."""
    connection_settings(CONN_MAX_AGE=0)
    held = await database_sync_to_async(wrapper)()
    assert held.connection is None
    assert await database_sync_to_async(raw)() is not None


@pytest.mark.parametrize("sensitive", [True, False])
async def test_connections_of_asgirefs_threads_are_cleaned(
    connection_settings, close_connections_of_asgiref, sensitive
):
    """What goes through asgiref, to its one thread or an executor, is cleaned as in channels.db."""
    connection_settings(CONN_MAX_AGE=0)
    with ThreadPoolExecutor(1) as executor:
        where = {"thread_sensitive": sensitive, "executor": None if sensitive else executor}
        held = await database_sync_to_async(wrapper, **where)()
        assert held.connection is None


async def test_old_connection_is_closed_before_the_next_call(connection_settings):
    """A connection that outlived CONN_MAX_AGE while its worker was idle is not used again."""
    connection_settings(CONN_MAX_AGE=0.05)
    before = await database_sync_to_async(raw)()
    await asyncio.sleep(0.1)
    assert await database_sync_to_async(raw)() is not before


async def test_health_checks_replace_a_dead_connection(connection_settings):
    """With CONN_HEALTH_CHECKS a connection that died while idle is replaced in time."""
    connection_settings(CONN_HEALTH_CHECKS=True, CONN_MAX_AGE=None)
    held = await database_sync_to_async(wrapper)()
    before = held.connection
    with mock.patch.object(type(held), "is_usable", return_value=False) as asked:
        assert await database_sync_to_async(raw)() is not before
    assert asked.called


async def test_connection_is_closed_when_an_error_made_it_unusable(connection_settings):
    """After a database error a connection that no longer answers is closed as the call ends."""
    connection_settings(CONN_MAX_AGE=None)

    def fail():
        held = wrapper()
        held.errors_occurred = True
        raise LookupError

    held = await database_sync_to_async(wrapper)()
    with (
        mock.patch.object(type(held), "is_usable", return_value=False),
        pytest.raises(LookupError),
    ):
        await database_sync_to_async(fail)()
    assert held.connection is None


async def test_connection_that_failed_half_way_through_connecting_is_closed():
    """A connection whose set-up failed is cleaned as its call ends."""
    with (
        mock.patch.object(
            type(connections["default"]), "init_connection_state", side_effect=LookupError("half")
        ),
        pytest.raises(LookupError, match="half"),
    ):
        await database_sync_to_async(raw)()
    with mock.patch.object(BaseDatabaseWrapper, "close_if_unusable_or_obsolete") as cleaned:
        await database_sync_to_async(raw)()
    assert cleaned.called


def test_unannounced_connection_is_found_at_the_next_sweep():
    """A connection that no signal announced is found within a second, when a lease starts."""

    def find():
        own = ThreadConnections()
        own.lease_starts(now=100.0)
        connection.ensure_connection()
        assert own.opened == []
        assert own.due == 100.0 + SWEEP
        own.lease_starts(now=own.due)
        assert own.opened == [connections["default"]]
        own.close()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(find).result(GUARD)


async def test_atomic_block_left_open_is_rolled_back(caplog):
    """An atomic block that a call enters and never leaves is rolled back; no other call sees it."""

    def leave_open():
        transaction.atomic().__enter__()
        User.objects.create(username="half done")
        return connection.connection

    before = await database_sync_to_async(leave_open)()
    assert await database_sync_to_async(User.objects.count)() == 0
    assert await database_sync_to_async(raw)() is not before
    assert not await database_sync_to_async(lambda: connection.in_atomic_block)()
    assert stats().discarded == 1
    assert "connection 'default' discarded: the call left a transaction open" in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


async def test_autocommit_switched_off_is_rolled_back(caplog):
    """A call that leaves autocommit off is rolled back; no other call sees it."""

    def leave_open():
        transaction.set_autocommit(False)
        User.objects.create(username="half done")
        return connection.connection

    before = await database_sync_to_async(leave_open)()
    assert await database_sync_to_async(User.objects.count)() == 0
    assert await database_sync_to_async(transaction.get_autocommit)()
    assert await database_sync_to_async(raw)() is not before
    assert "the call left a transaction open" in caplog.text


async def test_transaction_begun_by_hand_is_rolled_back(caplog):
    """A BEGIN sent by hand and left open is rolled back, where the driver can tell."""

    def leave_open():
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
        User.objects.create(username="half done")
        return server_says_transaction_open()

    seen = await database_sync_to_async(leave_open)()
    # mysqlclient does not know: https://github.com/PyMySQL/mysqlclient has no server_status.
    assert seen is (CHOICE != "mariadb")
    if seen:
        assert await database_sync_to_async(User.objects.count)() == 0
        assert "the call left a transaction open" in caplog.text
    else:
        await database_sync_to_async(transaction.rollback)()


async def test_transaction_left_open_by_a_failing_call_is_rolled_back(caplog):
    """The error of a call that leaves a transaction open still reaches its caller."""

    def leave_open():
        transaction.atomic().__enter__()
        User.objects.create(username="half done")
        raise LookupError("the call's own error")

    with pytest.raises(LookupError, match="the call's own error"):
        await database_sync_to_async(leave_open)()
    assert await database_sync_to_async(User.objects.count)() == 0
    assert "the call left a transaction open" in caplog.text


async def test_on_commit_of_a_transaction_left_open_never_runs(caplog):
    """What on_commit has collected in a transaction left open is dropped with it."""
    ran = []

    def leave_open():
        transaction.atomic().__enter__()
        transaction.on_commit(lambda: ran.append("committed"))

    await database_sync_to_async(leave_open)()

    def commit():
        with transaction.atomic():
            User.objects.exists()

    await database_sync_to_async(commit)()
    assert ran == []
    assert "the call left a transaction open" in caplog.text


async def test_connection_closed_in_a_transaction_left_open_is_replaced(caplog):
    """A call that closes its connection inside an atomic block left open spoils no later call."""

    def leave_open():
        transaction.atomic().__enter__()
        User.objects.exists()
        connection.close()
        connection.connection = None  # as psycopg's pool leaves it

    await database_sync_to_async(leave_open)()
    assert await database_sync_to_async(User.objects.count)() == 0
    assert "the call left a transaction open" in caplog.text


@pytest.mark.parametrize("error", [LookupError, SystemExit])
async def test_log_handler_that_fails_does_not_cost_the_worker(caplog, error):
    """If the warning cannot be logged, by a handler that uses the database, the worker goes on."""

    def leave_open():
        transaction.atomic().__enter__()
        transaction.set_rollback(True)
        return 1

    with mock.patch.object(logging.getLogger("ormbridge"), "warning", side_effect=error):
        assert await asyncio.wait_for(database_sync_to_async(leave_open)(), GUARD) == 1
    assert await database_sync_to_async(User.objects.count)() == 0
    assert stats().discarded == 1


async def test_close_that_exits_does_not_cost_the_worker(connection_settings, caplog):
    """Nor does a connection whose close() raises anything at all: it is discarded."""
    connection_settings(CONN_MAX_AGE=0)

    with mock.patch.object(type(connections["default"]), "close", side_effect=SystemExit):
        assert await asyncio.wait_for(database_sync_to_async(User.objects.count)(), GUARD) == 0
    assert await asyncio.wait_for(database_sync_to_async(User.objects.count)(), GUARD) == 0
    assert "cleaning it failed (SystemExit())" in caplog.text


async def test_connections_that_a_call_makes_for_itself_are_its_own():
    """A connection outside django.db.connections is neither kept open nor cleaned."""

    def use():
        own = connections.create_connection("default")
        own.set_autocommit(False)
        return own

    own = await database_sync_to_async(use)()
    try:
        assert await database_sync_to_async(User.objects.count)() == 0
        assert own.connection is not None
        assert stats().discarded == 0
    finally:
        own.inc_thread_sharing()
        await database_sync_to_async(own.close)()


def drop():
    connection.ensure_connection()
    del connections["default"]


async def test_connection_that_is_dropped_is_closed():
    """One that a function takes out of django.db.connections does not stay open on its worker."""
    opened = []

    def use():
        opened.append(connections["default"])
        drop()

    for _ in range(3):
        await database_sync_to_async(use)()
    assert await database_sync_to_async(raw)() is not None
    assert [each.connection for each in opened] == [None] * 3
    assert stats().discarded == 0


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
async def test_connection_that_is_dropped_and_a_reset(pool_settings):
    """What refuses to connect while RESET runs does not stay, where another alias was dropped."""
    pool_settings(MAX_THREADS=1, RESET=f"{__name__}.reset_of_the_thread")

    def drop_another():
        connections["other"].ensure_connection()
        del connections["other"]

    await database_sync_to_async(drop_another)()
    assert await database_sync_to_async(raw)() is not None


if CHOICE == "sqlite":

    @pytest.mark.django_db(transaction=True, databases=["default", "other"])
    async def test_database_in_memory_that_is_dropped(pool_settings, connection_settings):
        """Django does not close one: it goes all the same, and another alias can connect."""
        pool_settings(MAX_THREADS=1, RESET=f"{__name__}.reset_of_the_thread")
        connection_settings(NAME=":memory:")
        opened = []

        def use():
            opened.append(connections["default"])
            drop()
            connection.ensure_connection()
            return connections["other"].connection

        assert await database_sync_to_async(use)() is None
        assert opened[0].connection is None
        await database_sync_to_async(lambda: connections["other"].ensure_connection())()


async def test_finished_transaction_keeps_its_connection():
    """A call that commits its transaction, or rolls it back, keeps its connection."""

    def commit():
        with transaction.atomic():
            User.objects.create(username="done")
        return connection.connection

    def roll_back():
        with suppress(LookupError), transaction.atomic():
            User.objects.create(username="undone")
            raise LookupError
        return connection.connection

    first = await database_sync_to_async(commit)()
    assert await database_sync_to_async(roll_back)() is first
    assert await database_sync_to_async(User.objects.count)() == 1
    assert stats().discarded == 0


resets = []


def reset(held):
    """Stand in for what a project names in RESET."""
    resets.append((threading.current_thread().name, held.alias, held.connection is not None))


def failing_reset(held):
    raise LookupError("cannot reset")


def reset_that_opens_a_transaction(held):
    held.set_autocommit(False)


async def test_reset_runs_as_a_lease_ends(pool_settings):
    """RESET is called with each connection that was used, on the worker, as a call ends."""
    pool_settings(MAX_THREADS=1, RESET="tests.core.test_connections.reset")
    resets.clear()
    await database_sync_to_async(raw)()
    assert resets == [("ormbridge-worker-1", "default", True)]
    resets.clear()
    await database_sync_to_async(lambda: connections["other"].alias)()  # not opened
    assert sorted(resets) == [
        ("ormbridge-worker-1", "default", True),
        ("ormbridge-worker-1", "other", False),
    ]


async def test_reset_runs_where_no_connection_is_open(pool_settings):
    """RESET runs after a call that used no database as well: it may have left something else."""
    pool_settings(MAX_THREADS=1, RESET="tests.core.test_connections.reset")
    resets.clear()
    await database_sync_to_async(len)("")
    assert resets == [("ormbridge-worker-1", "default", False)]


def reset_that_asks(held):
    resets.append(held.alias)
    with held.cursor() as cursor:
        cursor.execute("SELECT 1")
    resets.append("asked")


async def test_reset_opens_no_connection(pool_settings, caplog):
    """Where RESET sends a statement on a connection that is not open, it ends there, quietly."""
    pool_settings(MAX_THREADS=1, RESET="tests.core.test_connections.reset_that_asks")
    resets.clear()
    await database_sync_to_async(len)("")
    assert resets == ["default"]
    assert (caplog.text, stats().discarded) == ("", 0)
    resets.clear()
    assert await database_sync_to_async(raw)() is not None
    assert resets == ["default", "asked"]


async def test_reset_that_fails_where_no_connection_is_open(pool_settings, caplog):
    """If RESET raises for a connection that is not open, Django's object for it is dropped."""
    pool_settings(MAX_THREADS=1, RESET="tests.core.test_connections.failing_reset")
    before = await database_sync_to_async(lambda: connections["default"])()
    assert await database_sync_to_async(lambda: connections["default"])() is not before
    assert "cleaning it failed (LookupError('cannot reset'))" in caplog.text


async def test_state_without_a_connection_ends_with_the_lease(pool_settings):
    """Django's object lives no longer than its connection, and all that was put there goes too."""
    pool_settings(MAX_THREADS=1)

    def leave():
        connection.force_debug_cursor = True
        connection.tenant = "acme"
        return connection.connection

    assert await database_sync_to_async(leave)() is None
    assert not await database_sync_to_async(lambda: hasattr(connection, "tenant"))()
    assert (await database_sync_to_async(what_is_there)())[1] is False


local = threading.local()


def reset_of_the_thread(held):
    local.__dict__.clear()


def reset_that_throws_away(held):
    local.__dict__.clear()
    held.close()
    del connections[held.alias]


def leave_on_the_thread():
    local.tenant = "blue"


def leave_a_transaction_open():
    leave_on_the_thread()
    transaction.atomic().__enter__()
    raw()


def throw_away():
    leave_on_the_thread()
    reset_that_throws_away(connection)
    leave_on_the_thread()


@pytest.fixture
def one_alias(monkeypatch):
    """Have one database only: RESET for another one would clear the thread, too."""
    monkeypatch.delitem(connections.settings, "other")


@pytest.mark.parametrize("reset", ["reset_of_the_thread", "reset_that_throws_away"])
@pytest.mark.parametrize("leave", [leave_on_the_thread, leave_a_transaction_open, throw_away])
async def test_reset_runs_whatever_became_of_the_connection(pool_settings, one_alias, reset, leave):
    """RESET runs also where the connection, or Django's object for it, was thrown away before."""
    pool_settings(MAX_THREADS=1, RESET=f"tests.core.test_connections.{reset}")
    for _ in range(2):
        await database_sync_to_async(leave)()
        assert await database_sync_to_async(lambda: vars(local))() == {}


async def test_state_of_a_new_object_ends_with_the_lease(pool_settings, caplog):
    """What is put on Django's new object, after a connection was discarded, is gone, too."""
    pool_settings(MAX_THREADS=1)

    def leave():
        connection.force_debug_cursor = True
        return connection.connection

    await database_sync_to_async(leave_a_transaction_open)()
    assert await database_sync_to_async(leave)() is None
    assert (await database_sync_to_async(what_is_there)())[1] is False


def pass_on(execute, *args):
    return execute(*args)


@pytest.fixture
def receive():
    """Have a function called for each connection that is made, from now on."""
    with ExitStack() as stack:

        def connect(receiver):
            connection_created.connect(receiver)
            stack.callback(connection_created.disconnect, receiver)

        yield connect


async def test_wrapper_of_a_receiver_stays(pool_settings, receive):
    """What a receiver installs as a connection is made is there as long as that; nothing else."""
    seen = []

    def guard(execute, sql, *args):
        seen.append(sql)
        return execute(sql, *args)

    @receive
    def install(connection, **kwargs):
        connection.force_debug_cursor = True
        if guard not in connection.execute_wrappers:
            connection.execute_wrappers.insert(0, guard)

    pool_settings(MAX_THREADS=1)
    first = await database_sync_to_async(raw)()
    there = await database_sync_to_async(what_is_there)()
    assert there[1] is True
    for _ in range(2):
        await database_sync_to_async(leave_everything)()
        assert await database_sync_to_async(what_is_there)() == there
    assert await database_sync_to_async(raw)() is first
    assert len([sql for sql in seen if "auth_user" in sql]) == 2


async def test_wrapper_around_the_call_that_connects_goes(pool_settings):
    """What a function has around its queries as it connects, and leaves later, is no receiver's."""
    pool_settings(MAX_THREADS=1)

    def count():
        with connection.execute_wrapper(pass_on), CaptureQueriesContext(connection):
            User.objects.count()

    def is_there():
        connection.ensure_connection()
        return pass_on in connection.execute_wrappers, connection.force_debug_cursor

    await database_sync_to_async(count)()
    assert await database_sync_to_async(is_there)() == (False, False)
    await database_sync_to_async(lambda: connection.execute_wrappers.append(pass_on))()
    assert await database_sync_to_async(is_there)() == (False, False)


async def test_statement_log_of_a_worker_does_not_grow(pool_settings, settings):
    """With DEBUG, a call begins with an empty log, as a request does."""
    pool_settings(MAX_THREADS=1)
    settings.DEBUG = True

    def store():
        connection.cursor().execute("SELECT 1")
        return len(connection.queries_log)

    await database_sync_to_async(raw)()
    assert [await database_sync_to_async(store)() for _ in range(5)] == [1] * 5


async def test_connection_whose_reset_fails_is_discarded(pool_settings, caplog):
    """If RESET raises, the connection is discarded and the call's result stands."""
    pool_settings(MAX_THREADS=1, RESET="tests.core.test_connections.failing_reset")
    before = await database_sync_to_async(raw)()
    assert before is not None
    assert await database_sync_to_async(raw)() is not before
    assert "cleaning it failed (LookupError('cannot reset'))" in caplog.text


async def test_reset_that_opens_a_transaction_is_discarded(pool_settings, caplog):
    """If RESET leaves a transaction open, the connection is discarded."""
    pool_settings(MAX_THREADS=1, RESET="tests.core.test_connections.reset_that_opens_a_transaction")
    before = await database_sync_to_async(raw)()
    assert await database_sync_to_async(raw)() is not before
    assert "RESET left a transaction open" in caplog.text


def reset_that_exits(held):
    raise SystemExit


async def test_reset_that_exits_does_not_cost_the_worker(pool_settings, caplog):
    """If RESET exits, the connection is discarded and the worker goes on."""
    pool_settings(MAX_THREADS=1, RESET="tests.core.test_connections.reset_that_exits")
    before = await asyncio.wait_for(database_sync_to_async(raw)(), GUARD)
    assert await database_sync_to_async(raw)() is not before
    assert "cleaning it failed (SystemExit())" in caplog.text


def reset_that_closes(held):
    held.close()


async def test_reset_may_close_the_connection(pool_settings, caplog):
    """If RESET closes the connection, that is no failure."""
    pool_settings(MAX_THREADS=1, RESET="tests.core.test_connections.reset_that_closes")
    before = await database_sync_to_async(raw)()
    assert await database_sync_to_async(raw)() is not before
    assert caplog.text == ""
    assert stats().discarded == 0


def test_driver_that_cannot_say_autocommit():
    """Where a MySQL driver has no get_autocommit, its in_transaction is asked: mysql.connector."""
    held = mock.Mock(vendor="mysql", in_atomic_block=False, autocommit=True)
    held.settings_dict = {"AUTOCOMMIT": True}
    held.connection = mock.Mock(spec=["in_transaction"], in_transaction=False)
    assert not transaction_open(held)
    held.connection.in_transaction = True
    assert transaction_open(held)


async def test_clean_up_that_fails_does_not_hide_the_result(caplog, monkeypatch):
    """If closing a connection fails, it is discarded and the call's result stands."""
    # A sweep before the call would fail as well, and the call have a new connection.
    monkeypatch.setattr(connections_module, "SWEEP", GUARD)
    held = await database_sync_to_async(wrapper)()
    before = held.connection
    with mock.patch.object(
        BaseDatabaseWrapper, "close_if_unusable_or_obsolete", side_effect=LookupError("stuck")
    ):
        assert await database_sync_to_async(raw)() is before
    assert await database_sync_to_async(raw)() is not before
    assert "cleaning it failed (LookupError('stuck'))" in caplog.text


if CHOICE == "postgresql":  # whose drivers know by themselves whether they begin transactions

    async def test_autocommit_switched_off_at_the_driver(pool_settings, caplog):
        """It is not handed on: the next caller's write would be lost."""
        pool_settings(MAX_THREADS=1)

        def leave():
            User.objects.exists()
            connections["default"].connection.autocommit = False

        await database_sync_to_async(leave)()
        assert "left a transaction open" in caplog.text
        await database_sync_to_async(User.objects.create)(username="ada")
        assert await database_sync_to_async(User.objects.count)() == 1


async def test_retiring_worker_closes_its_connections_on_its_own_thread(pool_settings):
    """A worker that retires closes its connections, on its own thread."""
    pool_settings(MAX_THREADS=1, MAX_IDLE=0.01)
    closed = []
    original = BaseDatabaseWrapper.close

    def close(held):
        closed.append((held.alias, threading.current_thread()))
        original(held)

    def use():
        User.objects.exists()
        return threading.current_thread(), connections["default"]

    with mock.patch.object(BaseDatabaseWrapper, "close", close):
        worker, held = await database_sync_to_async(use)()
        await asyncio.to_thread(worker.join, GUARD)
    assert closed == [("default", worker)]
    assert held.connection is None


async def test_one_connection_per_worker(pool_settings):
    """Ten workers have ten connections, however many calls they run."""
    pool_settings(MAX_THREADS=10)
    gate = Gate()
    seen = []

    def use():
        seen.append(raw())
        gate()

    calls = [asyncio.create_task(database_sync_to_async(use)()) for _ in range(30)]
    await gate.entered(10)
    gate.open.set()
    await asyncio.gather(*calls)
    assert len(seen) == 30
    assert len(set(map(id, seen))) == 10


def test_aclose_old_connections_closes_old_ones(connection_settings):
    """aclose_old_connections() closes a connection past its age, on the thread above it."""
    connection.close()
    connection_settings(CONN_MAX_AGE=0)
    connection.ensure_connection()
    async_to_sync(aclose_old_connections)()
    assert connection.connection is None


def test_aclose_old_connections_leaves_a_transaction_alone(connection_settings):
    """aclose_old_connections() does not close a connection inside a transaction."""
    connection.close()
    connection_settings(CONN_MAX_AGE=0)
    with transaction.atomic():
        User.objects.create(username="kept")
        async_to_sync(aclose_old_connections)()
        assert User.objects.count() == 1
    assert User.objects.count() == 1
    connection.close()


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
async def test_two_aliases(caplog):
    """Every alias that a call used is cleaned by itself: one left in a transaction costs one."""

    def use():
        transaction.atomic(using="other").__enter__()
        User.objects.using("other").exists()
        User.objects.exists()
        return connections["default"], connections["other"]

    default, other = await database_sync_to_async(use)()
    assert default.connection is not None
    assert other.connection is None
    assert "connection 'other' discarded" in caplog.text
    assert "connection 'default' discarded" not in caplog.text
