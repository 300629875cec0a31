"""Counting the queries of a test, on all connections."""

import asyncio

import pytest
from channels.generic.websocket import AsyncWebsocketConsumer
from django.contrib.auth.models import User
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.utils import logger
from django.http import HttpResponse
from django.test import AsyncClient, TestCase
from django.test.utils import CaptureQueriesContext
from django.urls import path

from ormbridge import BridgeMiddleware, atomic, database_sync_to_async, stream
from ormbridge.testing import assert_num_queries
from tests.settings import CHOICE
from tests.support.http import connect, disconnect, say

count = database_sync_to_async(User.objects.count)


async def calls():
    assert await count() == await User.objects.acount() == 0


async def in_atomic():
    async with atomic():
        await count()


async def streaming():
    assert [user async for user in stream(User.objects.all())] == []


async def iterating():
    assert [user async for user in User.objects.all()] == []


async def alone():
    await database_sync_to_async(User.objects.count, thread_sensitive=False)()


def count_and_close():
    User.objects.count()
    connection.close()


async def in_a_view():
    assert (await AsyncClient().get("/")).content == b"0"


class Consumer(AsyncWebsocketConsumer):
    """Tell how many users there are."""

    async def receive(self, text_data):
        await self.send(text_data=str(await count()))


async def in_a_consumer():
    socket = await connect(BridgeMiddleware(Consumer.as_asgi()))
    assert await say(socket) == "0"
    await disconnect(socket)


async def view(request):
    return HttpResponse(str(await count()))


urlpatterns = [path("", view)]


@pytest.fixture(autouse=True)
def urls(settings):
    """Have the client find the view."""
    settings.ROOT_URLCONF = __name__


# And how many queries each makes.
WAYS = {
    "calls": (calls, 2),
    "atomic": (in_atomic, 3),
    "stream": (streaming, 1),
    "async for": (iterating, 1),
    "thread_sensitive=False": (alone, 1),
    "a view": (in_a_view, 1),
    "a consumer": (in_a_consumer, 1),
}


@pytest.mark.parametrize("way", WAYS)
async def test_in_one_transaction(async_db, async_assert_num_queries, way):
    """All queries of the block count, whoever makes them."""
    make, number = WAYS[way]
    async with async_assert_num_queries(number) as queries:
        await make()
    assert "auth_user" in " ".join(each["sql"] for each in queries)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("connected", [False, True])
async def test_on_workers(async_transactional_db, async_assert_num_queries, way, connected):
    """So do those of tests that commit, on connections that are open and on new ones."""
    make, number = WAYS[way]
    if connected:
        await make()
    async with async_assert_num_queries(number):
        await make()


async def test_on_many_workers(async_transactional_db, async_assert_num_queries, gate):
    """Queries of several workers at once count; what their connections begin with does not."""

    def count_at_the_gate():
        gate()
        return User.objects.count()

    async with async_assert_num_queries(3) as queries:
        tasks = [asyncio.create_task(database_sync_to_async(count_at_the_gate)()) for _ in range(3)]
        await gate.entered(3)
        gate.open.set()
        assert await asyncio.gather(*tasks) == [0, 0, 0]
    assert len(set(gate.threads)) == 3
    assert {each["sql"] for each in queries} == {queries[0]["sql"]}


async def test_around_the_pool(async_transactional_db, async_assert_num_queries):
    """Queries on a thread around the pool count as well."""
    async with async_assert_num_queries(1):
        await asyncio.to_thread(count_and_close)


async def test_counts_as_django(async_transactional_db):
    """BEGIN and COMMIT count exactly where they count in Django."""

    def make():
        with transaction.atomic():
            User.objects.create(username="ann")
            User.objects.update(username="bob")
            User.objects.all().delete()

    def as_django():
        with CaptureQueriesContext(connection) as queries:
            make()
        return verbs(queries)

    expected = await database_sync_to_async(as_django)()
    async with assert_num_queries(len(expected)) as queries:
        await database_sync_to_async(make)()
    assert verbs(queries) == expected


def verbs(queries):
    return [each["sql"].partition(" ")[0] for each in queries]


def reset(connection):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'reset'")


async def test_reset_does_not_count(async_transactional_db, pool_settings):
    """What RESET sends as a worker is given back is none of the test's queries."""
    pool_settings(RESET=f"{__name__}.reset")
    async with assert_num_queries(2):
        await count()
        await count()


class InDjangosTestCase(TestCase):
    """An async test of Django's TestCase."""

    async def test_counts(self):
        """It counts there as well, where Django's own raises."""
        with pytest.raises(Exception, match="from an async context"), self.assertNumQueries(3):
            await in_atomic()
        async with assert_num_queries(3):
            await in_atomic()


# What it says.


async def test_error_lists_the_queries(async_db, async_assert_num_queries):
    """Another number is an error that lists the queries."""
    with pytest.raises(AssertionError) as caught:
        async with async_assert_num_queries(3, info="one for each user") as queries:
            await calls()
    assert str(caught.value).splitlines() == [
        "2 queries to 'default', 3 expected",
        "one for each user",
        *(f"* {each['sql']}" for each in queries),
    ]
    assert len(queries) == 2


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_at_the_most(async_db, async_assert_max_num_queries, number):
    """With the other fixture only more queries are an error."""
    if number > 1:
        async with async_assert_max_num_queries(number):
            await calls()
        return
    with pytest.raises(AssertionError, match=r"^2 queries to 'default', 1 at the most expected\n"):
        async with async_assert_max_num_queries(number):
            await calls()


async def test_error_of_the_block_goes_first(async_db):
    """A block that fails raises its own error."""
    with pytest.raises(ValueError, match="of the block"):
        async with assert_num_queries(1):
            raise ValueError("of the block")


async def test_other_alias(async_db):
    """Queries to one alias count, which an argument or a connection names."""
    async with assert_num_queries(2), assert_num_queries(0, using="other"):
        async with assert_num_queries(0, connections["other"]), assert_num_queries(2, connection):
            await calls()


async def test_blocks_may_overlap(async_db):
    """Each block counts what is made while it lasts, in whatever order they end."""
    before = vars(BaseDatabaseWrapper)["queries_logged"], vars(BaseDatabaseWrapper)["connect"]
    first, second = assert_num_queries(2), assert_num_queries(2)
    await first.__aenter__()
    await count()
    await second.__aenter__()
    await count()
    await first.__aexit__(None, None, None)
    await count()
    await second.__aexit__(None, None, None)
    await count()
    after = vars(BaseDatabaseWrapper)["queries_logged"], vars(BaseDatabaseWrapper)["connect"]
    assert (after, "debug" in vars(logger)) == (before, False)


async def test_other_messages_to_the_logger_pass(async_db, caplog):
    """Who logs to Django's logger meanwhile is not disturbed."""
    caplog.set_level("DEBUG", logger.name)
    async with assert_num_queries(1):
        logger.debug("something else")
        await count()
    assert (len(caplog.records), caplog.messages[0]) == (2, "something else")


if CHOICE == "mariadb":  # whose connections begin with queries that Django makes and logs

    async def test_connecting_does_not_count(async_transactional_db):
        """What a connection begins with is logged by Django, and does not count."""

        def reconnect():
            connection.close()
            connection.ensure_connection()

        async with assert_num_queries(0):
            await database_sync_to_async(reconnect)()
