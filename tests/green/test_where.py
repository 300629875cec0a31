"""What runs on the event loop's thread, and what does not."""

import asyncio
import contextlib
import threading

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group, User
from django.core.files.base import ContentFile
from django.core.files.storage import InMemoryStorage
from django.db import connection, models, transaction
from django.db.backends.signals import connection_created

from ormbridge import DatabaseSyncToAsync, atomic, database_sync_to_async, stream
from tests.core.gate import GUARD
from tests.core.support import no_worker_is_leased
from tests.support.canceller import in_context
from tests.support.wrapped import hand_on_by_keyword, wrap_atomic

pytestmark = pytest.mark.django_db(transaction=True)


class Overridden(Group):
    """A group with code of the project's in ``save()``."""

    class Meta:
        """It needs no table of its own."""

        proxy = True
        app_label = "auth"

    def save(self, *args, **kwargs):
        """Note where it runs."""
        self.saved_on = threading.get_ident()
        super().save(*args, **kwargs)


@pytest.fixture
def statements():
    """Return the threads on which statements were sent, in order."""
    seen = []

    def note(execute, *args):
        seen.append(threading.get_ident())
        return execute(*args)

    def watch(connection, **kwargs):
        connection.execute_wrappers.append(note)

    connection_created.connect(watch)
    yield seen
    connection_created.disconnect(watch)


def use_database():
    """Send a statement; return the thread."""
    User.objects.exists()
    return threading.get_ident()


async def call_a_method():
    await User.objects.acount()


async def iterate():
    async for _ in Group.objects.all():
        pass


async def read_a_stream():
    async for _ in stream(Group.objects.all(), 1):
        pass


async def call_what_is_marked():
    await database_sync_to_async(use_database, green=True)()


async def save():
    await Group(name="saved").asave()


OF_DJANGO = [call_a_method, iterate, read_a_stream, call_what_is_marked, save]


@pytest.mark.parametrize("do", OF_DJANGO)
async def test_what_runs_on_the_loops_thread(statements, do):
    """Django's own methods, iterations, streams and functions that say so run on its thread."""
    async with in_context(holds=True):
        await Group.objects.acreate(name="known")  # it connects, and what follows is watched
        statements.clear()
        await do()
    assert set(statements) == {threading.get_ident()}


async def test_blocks_begin_and_end_on_the_loops_thread(monkeypatch):
    """BEGIN and COMMIT, savepoints and rollbacks are sent on the loop's thread."""
    seen = []
    for name in ("__enter__", "__exit__"):
        original = getattr(transaction.Atomic, name)

        def watched(self, *args, original=original):
            seen.append(threading.get_ident())
            return original(self, *args)

        monkeypatch.setattr(transaction.Atomic, name, watched)
    async with atomic():
        async with atomic():
            pass
        with pytest.raises(LookupError):
            async with atomic():
                raise LookupError
    assert seen == [threading.get_ident()] * 6


@pytest.mark.parametrize(
    "wrapped",
    [
        database_sync_to_async(use_database),
        database_sync_to_async(use_database, green=False),
        sync_to_async(use_database),
    ],
)
async def test_what_is_not_marked_runs_on_a_thread(wrapped):
    """A function of the project's runs on its worker's thread, whatever calls it."""
    own = threading.get_ident()
    async with in_context(holds=True):
        await User.objects.acount()
        assert await wrapped() != own
        await User.objects.acount()
    assert await database_sync_to_async(use_database)() != own


async def test_all(green):
    """With ``"all"`` functions are green, but those that say that they are not."""
    green(GREEN="all")
    own = threading.get_ident()
    assert await database_sync_to_async(use_database)() == own
    assert await database_sync_to_async(use_database, green=False)() != own


@pytest.mark.django_db(transaction=False)
async def test_test_that_rolls_back_runs_on_a_thread(async_db):
    """The transaction of a test has one thread for all that is called in it, green or not."""
    own, function = threading.get_ident(), database_sync_to_async(use_database, green=True)
    assert await function() != own
    async with atomic():
        assert await function() != own


async def test_tool_with_a_thread_handler(monkeypatch):
    """What a tool hands to its own thread_handler by a keyword comes there, on a thread."""
    handled = hand_on_by_keyword(monkeypatch)
    async with in_context():
        assert await User.objects.acount() == 0
        assert await sync_to_async(threading.get_ident)() != threading.get_ident()
    assert handled == ["trace", "trace"]


@pytest.mark.parametrize("setting", [True, "all"])
async def test_subclass_with_a_thread_handler(green, setting):
    """What a subclass does around its calls is done, on a thread; without that it is green."""
    green(GREEN=setting)
    handled = []

    class Plain(DatabaseSyncToAsync):
        """Does nothing more."""

    class Handling(Plain):
        """Does something before and after each call, as the class of Channels."""

        def thread_handler(self, *args, **kwargs):
            """Note where it runs."""
            handled.append(threading.get_ident())
            return super().thread_handler(*args, **kwargs)

    own = threading.get_ident()
    assert await Plain(use_database, green=True)() == own
    assert await Handling(use_database, green=True)() != own
    await Handling(User.objects.count)()
    async with in_context(holds=True):
        assert await Plain(use_database, green=True)() == own
        assert await Handling(use_database, green=True)() != own
    assert len(handled) == 3
    assert own not in handled


async def test_package_with_its_own_atomic(green, monkeypatch):
    """Nothing is, where a package does something of its own, for its thread, in each atomic()."""
    green(GREEN=False)
    wrap_atomic(monkeypatch)
    green(GREEN="all")
    assert await database_sync_to_async(use_database)() != threading.get_ident()


async def test_first_call(green, pool_settings):
    """So is the first call of all, which makes the pool."""
    pool_settings(GREEN="all")
    assert await database_sync_to_async(use_database)() == threading.get_ident()


async def test_switched_off(green):
    """Without the setting nothing is green, nor is what says so."""
    green(GREEN=False)
    own = threading.get_ident()
    assert await database_sync_to_async(use_database, green=True)() != own


async def test_switched_off_for_the_next_call(green, pool_settings):
    """Other settings hold from the very next call on."""
    assert await database_sync_to_async(use_database, green=True)() == threading.get_ident()
    pool_settings(GREEN=False)
    assert await database_sync_to_async(use_database, green=True)() != threading.get_ident()
    assert await database_sync_to_async(use_database, green=True)() != threading.get_ident()
    await no_worker_is_leased()


async def test_overridden_method_runs_on_a_thread():
    """A ``save()`` of the project's may do anything, and so runs on a thread."""
    group = Overridden(name="one")
    async with in_context(holds=True):
        await group.asave()
    assert group.saved_on != threading.get_ident()


@pytest.mark.parametrize("method", ["acreate", "aget_or_create", "aupdate_or_create"])
async def test_method_that_saves_runs_where_the_save_may(method):
    """What calls a ``save()`` of the project's runs on a thread as well."""
    async with in_context(holds=True):
        found = await getattr(Overridden.objects, method)(name="one")
    group = found[0] if isinstance(found, tuple) else found
    assert group.saved_on != threading.get_ident()


@pytest.mark.parametrize("robust", [False, True])
async def test_on_commit_runs_on_a_thread(robust):
    """What was given to ``on_commit()`` may do anything, and so runs on a thread."""
    ran_on = []
    async with atomic():
        await Group.objects.acreate(name="one")
        await database_sync_to_async(transaction.on_commit)(
            lambda: ran_on.append(threading.get_ident()), robust=robust
        )
    assert len(ran_on) == 1
    assert ran_on != [threading.get_ident()]


@pytest.mark.parametrize("block", [transaction.atomic, contextlib.nullcontext])
async def test_on_commit_of_a_green_function(block):
    """So does what a green function gives to it, in a block of its own or outside of any."""
    ran_on = []

    def function():
        with block():
            Group.objects.create(name="one")
            transaction.on_commit(lambda: ran_on.append(threading.get_ident()))
        return list(ran_on), threading.get_ident()

    own = threading.get_ident()
    assert await database_sync_to_async(function, green=True)() == (ran_on, own)
    assert len(ran_on) == 1
    assert ran_on != [own]


class Noted(InMemoryStorage):
    """A place for files that notes from where they are stored."""

    def save(self, *args, **kwargs):
        stored_on.append(threading.get_ident())
        return super().save(*args, **kwargs)


stored_on = []


class Upload(models.Model):  # noqa: DJ008 # nobody prints it
    """A file, whose name is that of a group."""

    file = models.FileField(db_column="name", storage=Noted())

    class Meta:
        """It needs no table of its own."""

        managed = False
        db_table = "auth_group"
        app_label = "auth"


@pytest.mark.parametrize("method", ["asave", "acreate", "green"])
async def test_files_are_stored_on_a_thread(method):
    """Where they go may be far away."""
    stored_on.clear()
    file = ContentFile(b"", name="file")
    async with in_context(holds=True):
        if method == "asave":
            await Upload(file=file).asave()
        elif method == "acreate":
            await Upload.objects.acreate(file=file)
        else:
            await database_sync_to_async(Upload.objects.create, green=True)(file=file)
        assert await Upload.objects.acount() == 1
    assert len(stored_on) == 1
    assert stored_on != [threading.get_ident()]


async def test_async_to_sync_in_a_green_function():
    """What a green function awaits runs on its own event loop, and the function goes on."""
    seen = []

    async def inner():
        seen.append(threading.get_ident())
        return await User.objects.acount()

    def function():
        seen.append(threading.get_ident())
        counted = async_to_sync(inner)()
        seen.append(use_database())
        return counted

    assert await database_sync_to_async(function, green=True)() == 0
    assert seen == [threading.get_ident()] * 3


async def test_loop_goes_on_while_a_green_function_waits(green):
    """While one waits for PostgreSQL, others run, on one thread."""
    green(MAX_THREADS=3)
    begun = []

    def wait_for_the_last(number):
        begun.append(number)
        with connection.cursor() as cursor:
            # Who has a lock of the server's keeps it until the others wait for it.
            cursor.execute("SELECT pg_advisory_lock(%s)", [number])
            if number < 2:
                cursor.execute("SELECT pg_advisory_lock(%s)", [number + 1])
            else:
                while len(begun) < 3:
                    cursor.execute("SELECT 1")
            cursor.execute("SELECT pg_advisory_unlock_all()")
        return begun

    async def begin_last(number):
        await asyncio.sleep(0)
        return await database_sync_to_async(wait_for_the_last, green=True)(number)

    async with asyncio.timeout(GUARD):
        seen = await asyncio.gather(*map(begin_last, (2, 1, 0)))
    assert list(map(len, seen)) == [3, 3, 3]
