"""What goes with a green call, and comes back: variables, Locals, exceptions."""

import asyncio
import contextvars
import sys
import threading

import pytest
from asgiref.local import Local
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db import connection
from greenlet import greenlet

from ormbridge import database_sync_to_async
from tests.core.gate import apart

pytestmark = pytest.mark.django_db(transaction=True)

variable = contextvars.ContextVar("variable")
local = Local()


def green_call(function, *args, **options):
    return database_sync_to_async(function, green=True, **options)(*args)


def read_and_set():
    """Change what is there, before and after the server was waited for."""
    seen = [variable.get(), local.value]
    variable.set("between")
    User.objects.exists()
    seen += [variable.get(), local.value]
    variable.set("after")
    local.value = "after"
    return seen


async def test_variables_and_locals_go_in_and_come_back():
    """A green function has those of its caller, keeps them as it waits, and may change them."""
    variable.set("before")
    local.value = "before"
    assert await green_call(read_and_set) == ["before", "before", "between", "before"]
    assert (variable.get(), local.value) == ("after", "after")


async def test_calls_at_one_time_do_not_mix_them():
    """Each of several green functions that wait at one time has its own, as have their tasks."""

    async def one(number):
        variable.set(number)
        local.value = number

        def function():
            for _ in range(5):
                User.objects.exists()
                assert (variable.get(), local.value) == (number, number)
            variable.set(-number)
            local.value = -number

        await green_call(function)
        return variable.get(), local.value

    outcomes = await asyncio.gather(*map(one, range(1, 6)))
    assert outcomes == [(-number, -number) for number in range(1, 6)]
    assert variable.get(None) is None


async def test_variable_that_is_set_in_an_errand_comes_back():
    """What runs on the worker's thread for a green function changes that one's variables."""

    def set_there():
        variable.set(f"{variable.get()} and there")
        local.value = f"{local.value} and there"
        ran_on.append(threading.get_ident())

    def function():
        local.value = "here"
        apart(set_there)
        return variable.get(), local.value

    ran_on = []
    variable.set("here")
    assert await green_call(function) == ("here and there", "here and there")
    assert (variable.get(), local.value) == ("here and there", "here and there")
    assert ran_on != [threading.get_ident()]


async def test_variable_that_is_set_in_async_to_sync_comes_back():
    """So does what a green function awaits."""

    async def inner():
        variable.set("inner")

    await green_call(async_to_sync(inner))
    assert variable.get() == "inner"


async def test_given_context():
    """A function that is given a context runs there, and changes nothing else."""
    variable.set("here")
    local.value = "here"
    given = contextvars.copy_context()
    given.run(variable.set, "given")
    seen = await green_call(read_and_set, context=given)
    assert seen[::2] == ["given", "between"]
    assert (variable.get(), given[variable]) == ("here", "after")


def fail():
    User.objects.exists()
    raise LookupError("inside")


async def handled(green):
    """Return the errors that one leads to which is raised as another is handled."""
    try:
        raise KeyError("outside")
    except KeyError as outside:
        with pytest.raises(LookupError) as caught:
            await database_sync_to_async(fail, green=green)()
        return caught.value, outside


@pytest.mark.parametrize("green_or_not", [True, False])
async def test_exception_has_that_which_is_handled_as_its_context(green_or_not):
    """An exception in a function knows the one that its caller handles, on threads as well."""
    inside, outside = await handled(green_or_not)
    assert inside.__context__ is outside
    assert inside.__cause__ is None


def raise_again():
    """Catch an error and see its context; raise again what the caller handles."""
    User.objects.exists()
    try:
        raise LookupError
    except LookupError as error:
        contexts.append(error.__context__)
    raise


contexts = []


@pytest.mark.parametrize("green_or_not", [True, False])
async def test_function_knows_what_is_handled(green_or_not):
    """In a function the exception that its caller handles is handled, on threads as well."""
    contexts.clear()
    call = database_sync_to_async(raise_again, green=green_or_not)
    outside = KeyError("outside")
    try:
        raise outside
    except KeyError:
        with pytest.raises(KeyError) as caught:
            await call()
    assert (contexts, caught.value) == ([outside], outside)
    with pytest.raises(RuntimeError, match="No active exception"):
        await call()
    contexts.clear()  # an error knows, by its traceback, the call that raised it


@pytest.mark.parametrize("green_or_not", [True, False])
async def test_what_is_awaited_knows_what_is_handled(green_or_not):
    """So is what a function handles in what it awaits through async_to_sync."""
    caught = []

    async def inner():
        caught.append(sys.exc_info()[1])

    def function():
        try:
            raise KeyError
        except KeyError as error:
            async_to_sync(inner)()
            return error

    error = await database_sync_to_async(function, green=green_or_not)()
    assert caught == [error]


@pytest.mark.parametrize("green_or_not", [True, False])
async def test_exception_alone_has_no_context(green_or_not):
    """One that is raised where nothing is handled has none."""
    with pytest.raises(LookupError) as caught:
        await database_sync_to_async(fail, green=green_or_not)()
    assert caught.value.__context__ is None


async def test_exceptions_of_calls_at_one_time_do_not_mix():
    """Each green function that waits in an except clause goes on in its own."""

    async def one(number):
        def function():
            try:
                raise KeyError(number)
            except KeyError:
                for _ in range(3):
                    User.objects.exists()
                raise LookupError(number)  # noqa: B904 - it is what is tested

        with pytest.raises(LookupError) as caught:
            await green_call(function)
        return caught.value.args, caught.value.__context__.args

    outcomes = await asyncio.gather(*map(one, range(5)))
    assert outcomes == [((number,), (number,)) for number in range(5)]


@pytest.mark.parametrize("error", [StopIteration, SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_exceptions_that_end_something_come_to_the_caller(error, green):
    """None of them ends a greenlet or loses a worker; StopIteration is a RuntimeError, as ever."""
    green(MAX_THREADS=1)

    def function():
        User.objects.exists()
        raise error

    call = database_sync_to_async(function, green=True)
    raised = RuntimeError if error is StopIteration else error
    if error in (SystemExit, KeyboardInterrupt):  # a task that raises them stops the loop
        with pytest.raises(raised):
            await call()
    else:
        with pytest.raises(raised):
            await asyncio.create_task(call())
    assert await green_call(threading.get_ident) == threading.get_ident()


async def test_code_sees_no_running_loop():
    """Code in a green function is synchronous: Django and asgiref are to take it for that."""

    def function():
        User.objects.exists()
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        User.objects.exists()
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()

    loop = asyncio.get_running_loop()
    await green_call(function)
    assert asyncio.get_running_loop() is loop


async def test_greenlet_of_the_users_own():
    """A greenlet that a green function makes waits for the server, and returns to the function."""

    def select(number):
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s::int, pg_sleep(0.01)", [number])
            return cursor.fetchone()[0]

    def function(number):
        connection.close()  # the connecting is an errand
        return greenlet(select).switch(number), select(-number)

    outcomes = await asyncio.gather(*(green_call(function, number) for number in range(1, 6)))
    assert outcomes == [(number, -number) for number in range(1, 6)]
