"""The page ``howto/retry``: a transaction that PostgreSQL refuses, made again."""

import asyncio
import threading

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, OperationalError, connections
from django.db.models.signals import pre_save

from ormbridge import atomic, database_sync_to_async
from tests.core.gate import GUARD
from tests.settings import CHOICE

pytestmark = pytest.mark.django_db(transaction=True)


class Meeting:
    """Has the first two saves wait for each other: both have read by then."""

    def __init__(self):
        self.together = threading.Barrier(2, timeout=GUARD)
        self.lock = threading.Lock()
        self.saves = 0

    def __call__(self, **keywords):
        with self.lock:
            self.saves += 1
            meets = self.saves <= 2
        if meets:
            self.together.wait()


@pytest.fixture
def meeting():
    """Return a meeting that takes place."""
    meeting = Meeting()
    pre_save.connect(meeting, sender=User)
    yield meeting
    pre_save.disconnect(meeting, sender=User)


@pytest.fixture
def serializable(connection_settings):
    """Have the connections of this test see each other's transactions one after the other."""
    from django.db.backends.postgresql.psycopg_any import IsolationLevel

    options = connections.settings["default"]["OPTIONS"]
    connection_settings(OPTIONS={**options, "isolation_level": IsolationLevel.SERIALIZABLE})


async def both(function):
    return await asyncio.gather(function("ada"), function("bob"), return_exceptions=True)


async def superusers():
    return await User.objects.filter(is_superuser=True).acount()


if CHOICE == "postgresql":

    async def test_serializable(load_example, serializable, meeting, recorded):
        """Of two that sign up at once, one begins again, and one is the first."""
        assert await both(load_example("retry/serializable").sign_up) == [None, None]
        lines = [
            f"superusers: {await superusers()} of {await User.objects.acount()}",
            f"attempts: {meeting.saves}",
        ]
        recorded("retry/serializable", "\n".join(lines))

    async def test_serializable_without_repeating(load_example, serializable, meeting):
        """Without the decorator, one of them fails, with the code of a serialization failure."""
        once = load_example("retry/serializable").sign_up.__wrapped__
        first, second = await both(atomic()(once))
        (error,) = [each for each in (first, second) if each]
        assert isinstance(error, OperationalError)
        assert error.__cause__.sqlstate == "40001"
        assert str(error).startswith("could not serialize access due to read/write dependencies")

    async def test_usual_isolation(load_example, meeting):
        """At PostgreSQL's usual level nobody fails, and both are the first."""
        assert await both(load_example("retry/serializable").sign_up) == [None, None]
        assert await superusers() == 2

    async def test_last_attempt_raises(load_example):
        """When the attempts are used up, the error is raised."""
        module = load_example("retry/serializable")
        attempts = []

        async def fail():
            attempts.append(1)
            await database_sync_to_async(refuse)()

        with pytest.raises(OperationalError, match="refused"):
            await module.repeated(fail, attempts=3)()
        assert len(attempts) == 3


def refuse():
    """Have PostgreSQL raise a serialization failure."""
    with connections["default"].cursor() as cursor:
        cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '40001'; END $$")


async def test_other_errors_are_not_repeated(load_example, ada):
    """A name that is taken is taken the second time, too."""
    module = load_example("retry/serializable")
    attempts = []

    async def sign_up():
        attempts.append(1)
        await User.objects.acreate(username="ada")

    with pytest.raises(IntegrityError):
        await module.repeated(sign_up)()
    assert len(attempts) == 1


async def test_codes_of_either_driver(load_example):
    """psycopg has the code in sqlstate, psycopg2 in pgcode; both are repeated."""
    module = load_example("retry/serializable")
    left = ["sqlstate", "pgcode"]

    async def sign_up():
        if left:
            cause = Exception("could not serialize access")
            setattr(cause, left.pop(), "40001")
            raise OperationalError from cause

    await module.repeated(sign_up)()
    assert not left


async def test_inside_another_block(load_example):
    """Inside another transaction there is nothing to begin again, and it says so."""
    module = load_example("retry/serializable")
    with pytest.raises(RuntimeError, match="durable"):
        async with atomic():
            await module.sign_up("ada")
