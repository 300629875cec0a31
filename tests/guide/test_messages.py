"""The messages that people look up: each is printed by a run, word for word."""

import asyncio
import pickle
import re
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, Token
from pathlib import Path

import pytest
from asgiref.sync import iscoroutinefunction
from channels.auth import AuthMiddleware, AuthMiddlewareStack, UserLazyObject, login
from channels.sessions import CookieMiddleware
from channels.sessions import SessionMiddleware as SocketSessionMiddleware
from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.auth.models import AnonymousUser, User
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.exceptions import ImproperlyConfigured
from django.db import IntegrityError
from django.http import HttpResponse
from django.test import AsyncRequestFactory, RequestFactory, SimpleTestCase
from django.utils.decorators import sync_and_async_middleware
from django.utils.deprecation import MiddlewareMixin
from django.views.generic import ListView

import ormbridge
from ormbridge import BridgeError, PoolTimeout, atomic, database_sync_to_async
from ormbridge.core import errors
from tests.core.gate import GUARD
from tests.guide.conftest import INITDB, own_server
from tests.settings import CHOICE, DATABASES
from tests.support.examples import alone_on_postgresql, example_source
from tests.support.messages import PAGE, SAYS, is_known, is_on_the_page, wordings

# What differs from run to run: pattern, and what is shown in its place.
RUNS = [
    (r"thread id \d+", "thread id …"),
    (r"thread 'asyncio_\d'", "thread 'asyncio_0'"),
    (r"Task <.*> got Future <.*?>", "Task <…> got Future <…>"),
    (r'(?<="127.0.0.1", port )\d{2,}', "5432"),  # where the server of the tests is
    (r"Executing <Task .*> took [\d.]+ seconds", "Executing <Task …> took … seconds"),
]


@pytest.fixture
def said(run_script, recorded):
    """Return a function that runs an example, and records the messages that it prints."""

    def run(name, **environment):
        output = run_script(example_source(f"messages/{name}"), **environment)
        for pattern, instead in RUNS:
            output = re.sub(pattern, instead, output)
        recorded(f"messages/{name}", output)
        return output

    return run


def are_known(output):
    """Assert that the page has each TypeError of *output*, whichever Python words it."""
    errors = [line for line in output.splitlines() if ": TypeError: " in line]
    assert errors
    assert {line.partition(": ")[2] for line in errors} <= {*wordings()}


def test_in_async_code(said):
    """What Python, asgiref and Django say to mistakes in async code."""
    are_known(said("in_async_code"))


def test_django_says(said):
    """What Django says of transactions, views, streams and scopes."""
    said("django_says")


def test_not_set_up(said):
    """What a script reads that uses a model before Django is set up."""
    said("not_set_up")


def test_channels_says(said):
    """What Channels says of sockets that have no consumer, and of one that reads too slowly."""
    are_known(said("channels_says"))


def test_sqlite(said):
    """What SQLite says to two threads."""
    said("sqlite")


def test_bridge_says(said):
    """What the bridge says to blocks and streams that are used in a way that cannot work."""
    said("bridge_says")


def test_test_without_the_fixture():
    """pytest-django refuses a query in a test that asked for no database."""
    # On a thread of its own: the tests that use a browser leave a loop running on the first one.
    with ThreadPoolExecutor() as pool, pytest.raises(RuntimeError) as refused:
        pool.submit(User.objects.count).result()
    assert str(refused.value) == (
        'Database access not allowed, use the "django_db" mark, or the "db" or "transactional_db" '
        "fixtures to enable it."
    )


def test_simple_test_case():
    """A SimpleTestCase refuses a query on whatever thread its async test has it run."""

    class Case(SimpleTestCase):
        async def test_a_method(self):
            await User.objects.acount()

        async def test_bridge(self):
            await database_sync_to_async(User.objects.count)()

    def run():
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
        return [text for _, text in result.failures + result.errors]

    # On a thread of its own, as above.
    with ThreadPoolExecutor() as pool:
        refused = pool.submit(run).result()
    said = "DatabaseOperationForbidden: Database queries to 'default' are not allowed in Simple"
    assert [said in each for each in refused] == [True, True]


async def test_async_handlers_of_a_list_view(ada):
    """A generic view with async handlers alone queries on a worker, through the bridge."""
    threads = []

    class Users(ListView):
        model = User
        paginate_by = 1

        def get_queryset(self):
            threads.append(threading.current_thread().name)
            return super().get_queryset().order_by("pk")

        def render_to_response(self, context):
            return HttpResponse(context["object_list"])

        async def get(self, request):
            return await database_sync_to_async(super().get)(request)

        async def post(self, request):
            return HttpResponse(str(await User.objects.acount()))

    view, factory = Users.as_view(), AsyncRequestFactory()
    assert (await view(factory.get("/"))).text == "ada"
    assert (await view(factory.post("/"))).text == "1"
    assert threads == ["ormbridge-worker-1"]


def test_middleware_sets_the_user():
    """AuthenticationMiddleware gives a request its user, where a session came before."""
    request = AsyncRequestFactory().get("/")
    authenticate = AuthenticationMiddleware(HttpResponse)
    with pytest.raises(ImproperlyConfigured, match="authentication middleware requires session"):
        authenticate.process_request(request)
    SessionMiddleware(HttpResponse).process_request(request)
    assert not hasattr(request, "auser")
    authenticate.process_request(request)
    assert hasattr(request, "auser")


async def test_group_in_a_block(transactional_db):
    """The error of one task undoes the block around its group; ``except*`` tells errors apart."""
    caught, cancelled = [], []

    async def other():
        try:
            await asyncio.sleep(GUARD)
        except asyncio.CancelledError:
            cancelled.append("the other task")
            raise

    try:
        async with atomic():
            await User.objects.acreate(username="ada")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(other())
                tasks.create_task(User.objects.acreate(username="ada"))
    except* IntegrityError as group:
        caught = group.exceptions
    assert (len(caught), cancelled) == (1, ["the other task"])
    assert await User.objects.acount() == 0


async def test_generator_of_a_cancelled_task():
    """When the task that was in a generator has been cancelled, the generator can be closed."""
    inside = asyncio.Event()

    async def names():
        inside.set()
        await asyncio.sleep(GUARD)
        yield "never"

    generator = names()
    task = asyncio.create_task(anext(generator))
    await inside.wait()
    with pytest.raises(RuntimeError, match="asynchronous generator is already running"):
        await generator.aclose()
    task.cancel()
    await asyncio.wait([task])
    await generator.aclose()
    assert task.cancelled()


def test_loop_that_ends_finds_a_running_generator():
    """A loop that is shut down while a task is in a generator says so, and goes on."""
    said = []

    async def names():
        await asyncio.sleep(GUARD)
        yield "never"

    async def read():
        await anext(names())

    def run_and_end():
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: said.append(context))
        task = loop.create_task(read())
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        loop.close()

    # On a thread of its own, as above.
    with ThreadPoolExecutor() as pool:
        pool.submit(run_and_end).result()
    message = f"an error occurred during closing of asynchronous generator {said[0]['asyncgen']}"
    assert [(each["message"], str(each["exception"])) for each in said] == [
        (message, "aclose(): asynchronous generator is already running")
    ]


tenant = ContextVar("tenant", default="nobody")
DIFFERENT = r"^<Token var=.* was created in a different Context$"


class WithToken(MiddlewareMixin):
    """Resets the variable with its token."""

    def process_request(self, request):
        request.token = tenant.set("ada")

    def process_response(self, request, response):
        tenant.reset(request.token)
        return response


class WithSet(WithToken):
    """Sets the variable to what it was."""

    def process_response(self, request, response):
        old = request.token.old_value
        tenant.set("nobody" if old is Token.MISSING else old)
        return response


@sync_and_async_middleware
def around(get_response):
    """Set and reset the variable in one context."""

    @contextmanager
    def of_ada():
        token = tenant.set("ada")
        try:
            yield
        finally:
            tenant.reset(token)

    def middleware(request):
        with of_ada():
            return get_response(request)

    async def amiddleware(request):
        with of_ada():
            return await get_response(request)

    return amiddleware if iscoroutinefunction(get_response) else middleware


async def test_token_of_a_middleware():
    """Under ASGI the token of process_request does not fit in process_response; both mends do."""

    async def say(request):
        return HttpResponse(tenant.get())

    def say_under_wsgi(request):
        return HttpResponse(tenant.get())

    factory = AsyncRequestFactory()
    for make in (WithSet, around):
        assert (await make(say)(factory.get("/"))).text == "ada"
        assert tenant.get() == "nobody"
    for make in (WithToken, WithSet, around):
        assert make(say_under_wsgi)(RequestFactory().get("/")).text == "ada"
        assert tenant.get() == "nobody"
    with pytest.raises(ValueError, match=DIFFERENT):
        await WithToken(say)(factory.get("/"))


async def test_token_of_an_async_generator():
    """A generator that resets a variable as it is closed has to be closed where it began."""

    async def names():
        token = tenant.set("ada")
        try:
            yield "ada"
        finally:
            tenant.reset(token)

    generator = names()
    await anext(generator)
    with pytest.raises(ValueError, match=DIFFERENT):
        await asyncio.create_task(generator.aclose())


def test_user_of_a_socket():
    """No object points to the user of a socket on which nobody has logged in, or not yet."""
    membership, user = User.groups.through, UserLazyObject()
    with pytest.raises(ValueError, match=r"^Accessing scope user before it is ready\.$"):
        membership(user=user)
    user._wrapped = AnonymousUser()
    said = r'^Cannot assign "<channels\.auth\.UserLazyObject .*": .* must be a "User" instance\.$'
    with pytest.raises(ValueError, match=said):
        membership(user=user)
    user._wrapped = User(username="ada")
    assert membership(user=user).user.username == "ada"


async def test_sessions_of_a_socket():
    """Channels says which middleware is missing around the one that asks for the user."""

    async def ask(application):
        scope = {"type": "websocket", "path": "/", "headers": []}
        with pytest.raises(ValueError, match="in scope") as raised:
            await application(scope, None, None)
        is_known(raised.value)

    async def sign_in(scope, receive, send):
        await login(scope, User(username="ada"))

    await ask(AuthMiddleware(sign_in))
    await ask(sign_in)
    await ask(SocketSessionMiddleware(sign_in))
    whole = AuthMiddlewareStack(sign_in)
    kinds = [type(each) for each in (whole, whole.inner, whole.inner.inner)]
    assert kinds == [CookieMiddleware, SocketSessionMiddleware, AuthMiddleware]


def test_code_is_an_anchor():
    """Each code that ends a message of the bridge is the anchor of its entry, and the other way."""
    package = Path(ormbridge.__file__).parent
    sources = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    codes = set(re.findall(r"\[([a-z]+(?:-[a-z]+)*)\]\"", sources))
    page = PAGE.read_text(encoding="utf-8")
    assert codes == set(re.findall(r"^- `\[([a-z-]+)\]`$", page, re.MULTILINE))
    assert codes <= set(re.findall(r"^\(([a-z-]+)\)=$", page, re.MULTILINE))
    assert len(codes) > 10


def test_address_of_a_message(monkeypatch):
    """An error has the address of its entry behind its code, where the page has one."""
    error = PoolTimeout("waited in vain [pool-full]")
    assert str(error) == "waited in vain [pool-full]"
    monkeypatch.setattr(errors, "MESSAGES", "https://example.org/messages.html")
    expected = "waited in vain [pool-full] https://example.org/messages.html#pool-full"
    assert str(error) == str(pickle.loads(pickle.dumps(error))) == expected
    assert str(BridgeError("it has no code")) == "it has no code"


PSYCOPG2 = """
import psycopg2

def connect():
    return psycopg2.connect(
        host="{HOST}", port="{PORT}", user="{USER}", password="{PASSWORD}", dbname="postgres"
    )

@mistake
def session_that_is_terminated():
    one, other = connect(), connect()
    other.cursor().execute("SELECT pg_terminate_backend(%s)", [one.info.backend_pid])
    one.cursor().execute("SELECT 1")

@mistake
def query_on_a_closed_connection():
    one = connect()
    one.close()
    one.cursor()

@mistake
def fetch_from_a_closed_cursor():
    cursor = connect().cursor()
    cursor.close()
    cursor.fetchone()

@mistake
def fetch_from_a_named_cursor_after_the_commit():
    one = connect()
    cursor = one.cursor("named")
    cursor.execute("SELECT 1")
    one.commit()
    cursor.fetchone()

@mistake
def query_after_an_error_in_a_transaction():
    cursor = connect().cursor()
    try:
        cursor.execute("SELECT 1 / 0")
    except psycopg2.Error:
        cursor.execute("SELECT 1")
"""
SIGNAL = """
import signal
import threading
import django
import psycopg
from django.conf import settings

server = {{"HOST": "{HOST}", "PORT": "{PORT}", "USER": "{USER}", "PASSWORD": "{PASSWORD}"}}
engine = "django.db.backends.postgresql"
settings.configure(DATABASES={{"default": {{"ENGINE": engine, "NAME": "postgres", **server}}}})
django.setup()
from django.db import connection

class TimeLimitError(Exception):
    pass

def stop(*_):
    raise TimeLimitError

def stop_when_it_runs(pid):
    watching = {{key.lower(): value for key, value in server.items() if value}}
    with psycopg.connect(dbname="postgres", autocommit=True, **watching) as other:
        asleep = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
        while not other.execute(asleep, [pid]).fetchone():
            pass
    signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

def ask(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchone()[0]

@mistake
def go_on_after_a_signal():
    signal.signal(signal.SIGALRM, stop)
    limit = threading.Thread(target=stop_when_it_runs, args=[ask("SELECT pg_backend_pid()")])
    limit.start()
    try:
        ask("SELECT 1 FROM pg_sleep(30)")
    except TimeLimitError:
        ask("SELECT 1")
    finally:
        limit.join()

connection.close()
print("after close():", ask("SELECT 1"))
connection.close()
"""
MYSQL = """
import select
import mysql.connector
import pymysql

SERVER = dict(host="{HOST}", port=int("{PORT}" or 3306), user="{USER}", password="{PASSWORD}")

def run(connection, statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)

@mistake
def session_that_is_terminated():
    with pymysql.connect(**SERVER) as one, pymysql.connect(**SERVER) as other:
        run(other, f"KILL {{one.thread_id()}}")
        run(one, "SELECT 1")

@mistake
def query_on_a_closed_connection():
    one = pymysql.connect(**SERVER)
    one.close()
    run(one, "SELECT 1")

@mistake
def server_that_does_not_run():
    pymysql.connect(host="127.0.0.1", port=1)

@mistake
def query_on_a_closed_connection_of_mysql_connector():
    one = mysql.connector.connect(**SERVER)
    one.close()
    run(one, "SELECT 1")

@mistake
def server_that_does_not_run_for_mysql_connector():
    mysql.connector.connect(host="127.0.0.1", port=1)
"""


if CHOICE == "postgresql":

    def test_psycopg2_says(run_script, db):
        """What psycopg 2 says in words of its own is on the page, word for word."""
        is_on_the_page(run_script((SAYS + PSYCOPG2).format(**DATABASES["default"])))

    def test_postgresql(said, db):
        """What PostgreSQL and psycopg say."""
        server = DATABASES["default"]
        with alone_on_postgresql():
            said(
                "postgresql",
                PGHOST=server["HOST"],
                PGPORT=server["PORT"],
                PGUSER=server["USER"],
                PGPASSWORD=server["PASSWORD"],
            )

    def test_close_after_a_signal(run_script, db):
        """Django says it, too, where a signal broke into a query; a connection closed has none."""
        output = run_script((SAYS + SIGNAL).format(**DATABASES["default"]))
        is_on_the_page(output.removesuffix("after close(): 1\n"), 1)
        assert output.endswith("\nafter close(): 1\n")


if INITDB is not None:  # a server that asks for passwords is not always at hand

    def test_passwords(run_script, recorded):
        """What PostgreSQL says to a password that is wrong, or missing."""
        source, password = example_source("messages/passwords"), "a secret"
        with own_server(password=password) as host:
            login = {"PGUSER": "postgres", "PGPASSWORD": password}
            output = run_script(source, PGHOST=host, **login)
        recorded("messages/passwords", output.replace(host, "/var/run/postgresql"))


if CHOICE == "mariadb":

    def test_mysql_says(run_script, db):
        """What PyMySQL and mysql-connector say is on the page, word for word."""
        is_on_the_page(run_script((SAYS + MYSQL).format(**DATABASES["default"])))

    def test_mariadb(said, db, tmp_path):
        """What MariaDB and mysqlclient say."""
        server = DATABASES["default"]
        names = {"host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}
        lines = [f"{name}={server[key]}" for name, key in names.items()]
        (tmp_path / "my.cnf").write_text("\n".join(["[client]", *lines, ""]), encoding="utf-8")
        said("mariadb")
