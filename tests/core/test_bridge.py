"""What users of asgiref and Channels rely on: outcomes, context, forms, refusals."""

import abc
import asyncio
import contextvars
import copy
import gc
import inspect
import sys
import threading
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from asgiref.local import Local
from asgiref.sync import SyncToAsync, ThreadSensitiveContext, async_to_sync, sync_to_async

from ormbridge.core.bridge import (
    DatabaseSyncToAsync,
    aclose_old_connections,
    database_sync_to_async,
)
from tests.core.support import thread_name, until

WORKER = "ormbridge-worker-"


async def test_inline_form_passes_arguments_and_result():
    """The inline form passes positional and keyword arguments on, and returns the result."""

    def describe(a, *, b):
        return (a, b, thread_name().startswith(WORKER))

    assert await database_sync_to_async(describe)(1, b=2) == (1, 2, True)


async def test_decorator_form_on_functions_and_methods():
    """The decorator form works on functions, methods, static methods and class methods."""

    @database_sync_to_async
    def function(x):
        return ("function", x)

    class Consumer:
        @database_sync_to_async
        def method(self, x):
            return (self, x)

        @staticmethod
        @database_sync_to_async
        def static(x):
            return ("static", x)

        @database_sync_to_async
        @staticmethod
        def static_outside_in(x):
            return ("static", x)

        @classmethod
        @database_sync_to_async
        def class_method(cls, x):
            return (cls, x)

    consumer = Consumer()
    assert await function(1) == ("function", 1)
    assert await consumer.method(2) == (consumer, 2)
    assert await Consumer.method(consumer, 3) == (consumer, 3)
    assert await consumer.static(4) == ("static", 4)
    assert await Consumer.static(5) == ("static", 5)
    assert await consumer.static_outside_in(6) == ("static", 6)
    assert await consumer.class_method(7) == (Consumer, 7)
    assert await Consumer.class_method(8) == (Consumer, 8)


async def test_decorator_form_with_options():
    """The decorator takes what the inline form takes after the function, by name, as asgiref's."""

    @database_sync_to_async(thread_sensitive=False)
    def anywhere(a, *, b):
        return a, b, thread_name()

    assert await anywhere(1, b=2) == (1, 2, WORKER + "1")
    assert anywhere._anywhere


class Ready(DatabaseSyncToAsync, abc.ABC):
    """Is told nothing but a name."""

    def __init__(self, *, name):
        super().__init__(lambda: name)


async def test_what_takes_options_is_a_class_like_any_other():
    """It is derived from and copied, and says what it takes."""
    assert await Ready(name="ada")() == "ada"
    assert await copy.copy(database_sync_to_async(str))(1) == "1"
    first, *_ = inspect.signature(database_sync_to_async).parameters
    assert first == "func"


async def test_decorated_functions_are_seen_as_coroutine_functions():
    """Decorated functions and methods count as coroutine functions, and keep name and docstring."""

    class Consumer:
        @database_sync_to_async
        def method(self):
            """Say hello."""

    assert inspect.iscoroutinefunction(Consumer().method)
    assert Consumer.method.__name__ == Consumer().method.__name__ == "method"
    assert Consumer.method.__doc__ == Consumer().method.__doc__ == "Say hello."
    if sys.version_info >= (3, 12):
        assert inspect.iscoroutinefunction(Consumer.method)


async def test_bound_methods_keep_their_object():
    """The inline form of a bound method knows the object it is bound to, as asgiref's does."""

    class Consumer:
        def method(self):
            return self

    consumer = Consumer()
    bridged = database_sync_to_async(consumer.method)
    assert bridged.__self__ is consumer
    assert await bridged() is consumer


@pytest.mark.parametrize("wrong", [None, "name", 3])
def test_refuses_what_is_not_callable(wrong):
    """What is not callable is refused with asgiref's TypeError."""
    with pytest.raises(TypeError, match=r"sync_to_async can only be applied to sync functions\."):
        database_sync_to_async(wrong)


def test_refuses_coroutine_functions():
    """Coroutine functions and objects with a coroutine __call__ are refused, as in asgiref."""

    async def coroutine():
        """Never run."""

    class Callable:
        async def __call__(self):
            """Never run."""

    for wrong in (coroutine, Callable()):
        with pytest.raises(TypeError, match="sync_to_async can only be applied to sync functions"):
            database_sync_to_async(wrong)


def test_is_a_sync_to_async():
    """The bridge is asgiref's SyncToAsync, under the two names that channels.db has."""
    assert database_sync_to_async is DatabaseSyncToAsync
    assert issubclass(DatabaseSyncToAsync, SyncToAsync)


async def test_exception_keeps_its_traceback():
    """An exception arrives as it was raised, with the traceback of the function."""

    def fail():
        raise LookupError("no such user")

    with pytest.raises(LookupError, match="no such user") as caught:
        await database_sync_to_async(fail)()
    assert [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)][-1] == "fail"


async def test_stop_iteration_becomes_a_runtime_error():
    """StopIteration, which a future cannot hold, arrives as RuntimeError with its cause."""
    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        await database_sync_to_async(next)(iter(()))
    assert isinstance(caught.value.__cause__, StopIteration)


async def test_exceptions_outside_exception_arrive_too():
    """BaseException, such as a library's own, reaches the caller."""

    class Stop(BaseException):
        pass

    def fail():
        raise Stop

    with pytest.raises(Stop):
        await database_sync_to_async(fail)()


async def test_sees_the_exception_being_handled():
    """Inside an except block the function sees that exception in sys.exc_info(), as in asgiref."""
    try:
        raise LookupError("outer")
    except LookupError:
        kind, error, _ = await database_sync_to_async(sys.exc_info)()
    assert kind is LookupError
    assert str(error) == "outer"


async def test_failed_call_leaves_no_cycle():
    """A failed call is freed at once: its exception is in no reference cycle of ours."""

    class FailureError(Exception):
        pass

    def fail():
        raise FailureError

    gc.collect()
    gc.disable()
    try:
        try:
            await database_sync_to_async(fail)()
        except FailureError as error:
            seen = weakref.ref(error)
        # The worker lets go of the call a moment after the outcome is here.
        await database_sync_to_async(len)("")
        assert seen() is None
    finally:
        gc.enable()


async def test_arguments_are_let_go():
    """Neither the pool nor an idle worker keeps arguments or results of a finished call."""

    class Argument:
        pass

    argument = Argument()
    seen = weakref.ref(argument)
    assert await database_sync_to_async(lambda given: given)(argument) is argument
    del argument
    await until(lambda: seen() is None)


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_context_variables_go_in_and_come_back():
    """The function sees the caller's context variables, and the caller sees what it sets."""

    def swap():
        before = variable.get()
        variable.set("from the thread")
        return before

    variable.set("from the loop")
    assert await database_sync_to_async(swap)() == "from the loop"
    assert variable.get() == "from the thread"


async def test_context_variable_that_another_task_sets_meanwhile(gate):
    """Where two tasks have one context, a call brings back what its function set, and no more."""
    other = contextvars.ContextVar("other")

    def swap():
        gate()
        variable.set("from the thread")

    variable.set("from the loop")
    other.set("before")
    context = contextvars.copy_context()
    task = asyncio.create_task(database_sync_to_async(swap)(), context=context)
    await gate.entered()
    context.run(other.set, "meanwhile")
    gate.open.set()
    await task
    assert [context[variable], context[other]] == ["from the thread", "meanwhile"]


async def test_context_variables_come_back_from_a_failed_call():
    """What a function sets before it raises reaches the caller too."""

    def fail():
        variable.set("before failing")
        raise LookupError

    with pytest.raises(LookupError):
        await database_sync_to_async(fail)()
    assert variable.get() == "before failing"


async def test_locals_of_asgiref_go_in_and_come_back():
    """asgiref's Local, which Django keeps its translations in, crosses both ways."""
    local = Local()
    local.language = "de"

    def swap():
        before = local.language
        local.language = "fr"
        return before

    assert await database_sync_to_async(swap)() == "de"
    assert local.language == "fr"


async def test_given_context_is_used_and_nothing_comes_back():
    """With context= the function runs in that context, and the caller's stays as it is."""
    context = contextvars.copy_context()
    context.run(variable.set, "given")

    def swap():
        before = variable.get()
        variable.set("changed")
        return before

    variable.set("caller's")
    assert await database_sync_to_async(swap, context=context)() == "given"
    assert context[variable] == "changed"
    assert variable.get() == "caller's"


async def test_thread_sensitive_true_is_asgirefs_thread():
    """thread_sensitive=True runs where asgiref's thread-sensitive calls run."""
    theirs = await sync_to_async(threading.get_ident)()
    assert await database_sync_to_async(threading.get_ident, thread_sensitive=True)() == theirs
    async with ThreadSensitiveContext():
        inside = await sync_to_async(threading.get_ident)()
        assert inside != theirs
        ours = await database_sync_to_async(threading.get_ident, thread_sensitive=True)()
        assert ours == inside


async def test_executor_is_used_as_given():
    """executor= with thread_sensitive=False runs on that executor, outside the pool."""
    with ThreadPoolExecutor(thread_name_prefix="mine") as executor:
        call = database_sync_to_async(thread_name, thread_sensitive=False, executor=executor)
        assert (await call()).startswith("mine")


@pytest.mark.parametrize("keywords", [{}, {"thread_sensitive": True}])
def test_executor_needs_thread_sensitive_false(keywords):
    """executor= without thread_sensitive=False is refused with asgiref's TypeError."""
    with (
        ThreadPoolExecutor() as executor,
        pytest.raises(TypeError, match="executor must not be set when thread_sensitive is True"),
    ):
        database_sync_to_async(len, executor=executor, **keywords)


async def test_thread_sensitive_false_is_any_worker():
    """thread_sensitive=False runs on a worker of the pool."""
    call = database_sync_to_async(thread_name, thread_sensitive=False)
    assert (await call()).startswith(WORKER)


async def test_default_ignores_a_plain_thread_sensitive_context():
    """A plain call takes a worker, inside Django's per-request thread context too."""
    async with ThreadSensitiveContext():
        assert (await database_sync_to_async(thread_name)()).startswith(WORKER)


async def test_calls_run_at_the_same_time(gate, pool_settings):
    """Calls of one event loop run in parallel, each on its own worker."""
    pool_settings(MAX_THREADS=3)
    calls = [asyncio.create_task(database_sync_to_async(gate)()) for _ in range(3)]
    await gate.entered(3)
    gate.open.set()
    assert len(set(await asyncio.gather(*calls))) == 3


async def test_class_with_a_method_of_the_bridges_name():
    """A class that has a ``make_call()`` of its own can be called."""

    class Phone:
        def make_call(self, number):
            return number

    assert (await database_sync_to_async(Phone)()).make_call(1) == 1


async def test_traced_thread_handler_is_called(monkeypatch):
    """Tools that replace SyncToAsync.thread_handler see the calls of the bridge."""
    seen = []
    original = SyncToAsync.thread_handler

    def traced(self, *args, **kwargs):
        seen.append(thread_name())
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SyncToAsync, "thread_handler", traced)
    await database_sync_to_async(len)("")
    assert len(seen) == 1
    assert seen[0].startswith(WORKER)


async def test_async_to_sync_inside_a_call_returns_to_the_loop():
    """async_to_sync inside the function runs its coroutine on the caller's event loop."""
    loop = asyncio.get_running_loop()

    async def where():
        return asyncio.get_running_loop()

    assert await database_sync_to_async(async_to_sync(where))() is loop


async def test_aclose_old_connections_runs_where_native_methods_run(monkeypatch):
    """aclose_old_connections() cleans the thread of Django's own a-methods."""
    seen = []
    monkeypatch.setattr(
        "ormbridge.core.bridge.close_old_connections_outside_transactions",
        lambda: seen.append(threading.get_ident()),
    )
    await aclose_old_connections()
    assert set(seen) == {await sync_to_async(threading.get_ident)()}


class Rows:
    """Is compared as an array is: the answer is neither true nor false."""

    def __eq__(self, other):
        raise ValueError("the truth value is ambiguous")

    __hash__ = None


@pytest.mark.parametrize(
    ("before", "value"), [([1], [1]), (1, True), (Rows(), Rows())], ids=["list", "bool", "rows"]
)
def test_context_variable_set_to_an_equal_value(before, value):
    """What a function has set is what comes back, whatever its values say of being equal."""
    variable = contextvars.ContextVar("variable")

    async def call():
        variable.set(before)
        await database_sync_to_async(variable.set)(value)
        return variable.get()

    with ThreadPoolExecutor(1) as thread:  # nothing else is in its context
        assert thread.submit(contextvars.Context().run, asyncio.run, call()).result() is value


def test_coroutine_that_is_freed_later_changes_no_context(gate):
    """What a task had set in a loop that was closed under it comes to nobody else."""
    variable = contextvars.ContextVar("variable", default="nobody's")

    async def work():
        variable.set("the task's")
        await database_sync_to_async(gate)()

    async def begin():
        task = asyncio.create_task(work())
        await gate.entered()
        task._log_destroy_pending = False
        return weakref.ref(task)

    async def see():
        await until(lambda: gc.collect() >= 0 and left() is None)
        return variable.get()

    loop = asyncio.new_event_loop()
    left = loop.run_until_complete(begin())
    loop.close()
    gate.open.set()
    assert asyncio.run(see()) == "nobody's"
