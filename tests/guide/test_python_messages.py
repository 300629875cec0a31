"""Messages of Python, asgiref and pools that people look up, and of a transaction that is gone."""

import asyncio
import contextlib
import re
import threading

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group, Permission, User
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.http import Http404
from django.shortcuts import aget_list_or_404, aget_object_or_404

from ormbridge import database_sync_to_async
from tests.settings import CHOICE, DATABASES
from tests.support.messages import SAYS, is_answered, is_known, is_on_the_page, wordings

# Code that is not, or not only, async.

MISPLACED = [
    "await f()",
    "def g():\n    await f()",
    "def g():\n    return [row async for row in f()]",
    "def g():\n    async for row in f(): pass",
    "def g():\n    async with f(): pass",
]


@pytest.mark.parametrize("source", MISPLACED)
def test_await_outside_of_a_coroutine_function(source):
    """Python does not even compile it; in an async def it does."""
    with pytest.raises(SyntaxError) as refused:
        compile(source, "<shell>", "exec")
    assert f"SyntaxError: {refused.value.msg}" in wordings()  # without the place
    where = source.replace("def g():\n    ", "")
    compile(f"async def g():\n    {where}", "<shell>", "exec")


SHELL = """
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User

async def count():
    return await User.objects.acount()

print(User.objects.count())
print(async_to_sync(count)())
"""


def test_shell_of_django(ada, capsys):
    """``manage.py shell`` takes no await; it takes plain queries, and async_to_sync()."""
    with pytest.raises(SyntaxError, match="'await' outside function"):
        call_command("shell", command="await User.objects.acount()")
    call_command("shell", command=SHELL)
    assert capsys.readouterr().out.splitlines()[-2:] == ["1", "1"]


async def test_await_of_an_async_generator(ada):
    """aiterator() is no coroutine; ``async for`` reads it."""
    with pytest.raises(TypeError) as refused:
        await User.objects.aiterator()
    is_known(refused.value)
    assert [user.username async for user in User.objects.aiterator()] == ["ada"]


async def test_loop_of_another_thread():
    """In debug mode a loop refuses what is not for other threads; async_to_sync() is."""
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    with pytest.raises(RuntimeError) as refused:
        await database_sync_to_async(loop.call_soon)(print)
    is_known(refused.value)

    async def where():
        return asyncio.get_running_loop()

    assert await database_sync_to_async(async_to_sync(where))() is loop


def test_loop_on_a_thread_that_waits():
    """Below async_to_sync(), asgiref refuses a call of a loop that was started on that thread."""

    async def name():
        return await sync_to_async(lambda: threading.current_thread().name)()

    async def through_the_bridge():
        return await database_sync_to_async(lambda: threading.current_thread().name)()

    def started(function):
        return lambda: asyncio.run(function())

    @async_to_sync
    async def call(function):
        return await sync_to_async(function)()

    with pytest.raises(RuntimeError) as refused:
        call(started(name))
    is_known(refused.value)
    assert call(async_to_sync(name)) == threading.current_thread().name
    assert call(started(through_the_bridge)) == "ormbridge-worker-1"


# What has an async form of its own.


async def test_shortcuts_and_permissions(ada):
    """The shortcuts and the permissions of a user have a form that is awaited."""
    assert await aget_object_or_404(User, username="ada") == ada
    assert await aget_list_or_404(User, username="ada") == [ada]
    with pytest.raises(Http404):
        await aget_object_or_404(User, username="bob")
    assert not await ada.ahas_perm("auth.add_user")
    await ada.user_permissions.aadd(await Permission.objects.aget(codename="add_user"))
    assert await (await User.objects.aget()).ahas_perm("auth.add_user")


# A transaction that was ended below a block.


def end_below_a_block(statement):
    with transaction.atomic(), transaction.atomic():
        Group.objects.create(name="before")
        with connection.cursor() as cursor:
            cursor.execute(statement)


ENDS = ["ROLLBACK"]
if CHOICE == "mariadb":  # it commits before it makes a table
    ENDS.append("CREATE TABLE IF NOT EXISTS made_below_a_block (number int)")


@pytest.mark.parametrize("statement", ENDS, ids=lambda each: each.split()[0].lower())
def test_savepoint_of_a_transaction_that_was_ended(transactional_db, statement):
    """The savepoint of an inner block is gone with the transaction, and the database says so."""
    with pytest.raises(DatabaseError) as refused:
        end_below_a_block(statement)
    error = refused.value
    error.args = tuple(
        re.sub(r"s\d+_x\d+", "s140213_x1", each) if isinstance(each, str) else each
        for each in error.args
    )
    is_answered(error)
    with contextlib.suppress(DatabaseError), connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS made_below_a_block")


# PostgreSQL: pools, and connections that idle.

WAITING = """
import threading
import django
from django.conf import settings

server = {{"HOST": "{HOST}", "PORT": "{PORT}", "USER": "{USER}", "PASSWORD": "{PASSWORD}"}}
server |= {{"ENGINE": "django.db.backends.postgresql", "NAME": "postgres"}}
pool = {{"min_size": 1, "max_size": 1, "max_waiting": 1}}
settings.configure(DATABASES={{"default": {{**server, "OPTIONS": {{"pool": pool}}}}}})
django.setup()
from django.db import connection

def ask():
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")

def ask_and_give_back():
    ask()
    connection.close()

def come_when_another_waits():
    other = threading.Thread(target=ask_and_give_back)
    other.start()
    while not connection.pool.get_stats().get("requests_waiting"):
        pass
    one_more = threading.Thread(target=mistake, args=[ask])
    one_more.start()
    one_more.join()
    connection.close()
    other.join()

ask()
come_when_another_waits()
connection.close_pool()
"""
IDLE = """
import psycopg

server = dict(host="{HOST}", port="{PORT}", user="{USER}", password="{PASSWORD}", dbname="postgres")
server = {{key: value for key, value in server.items() if value}}

def session_that_idles():
    with psycopg.connect(**server, autocommit=True) as one, psycopg.connect(**server) as other:
        other.autocommit = True
        one.execute("SET idle_session_timeout = '1ms'")
        there = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        while other.execute(there, [one.info.backend_pid]).fetchone():
            pass
        one.execute("SELECT 1")

@mistake
def session_that_hears_why():
    # On a busy machine psycopg may say no more than that the connection is closed.
    while True:
        try:
            session_that_idles()
        except psycopg.OperationalError as error:
            if "closed the connection unexpectedly" not in str(error):
                raise
"""

if CHOICE == "postgresql":

    def test_more_wait_for_psycopg_pool_than_may(run_script, db):
        """With ``max_waiting``, who comes when so many wait is refused at once."""
        output = run_script((SAYS + WAITING).format(**DATABASES["default"]))
        is_on_the_page(re.sub(r"pool-\d", "pool-1", output), 1)

    def test_session_that_idles(run_script, db):
        """The server closes a session that is idle for longer than ``idle_session_timeout``."""
        is_on_the_page(run_script((SAYS + IDLE).format(**DATABASES["default"])), 1)
