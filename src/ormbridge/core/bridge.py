"""The bridge: ``database_sync_to_async`` (step 1 of a call).

A subclass of asgiref's ``SyncToAsync``: exceptions, context variables, methods, decorators and
nesting behave as users of asgiref and Channels know them. What differs is the thread that a call
runs on, and what happens to its connections.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from asgiref.sync import SyncToAsync, sync_to_async

from . import hooks
from . import route as routes
from .asgiref import has_locals, move_locals, own_handler, take_over
from .call import Call, Job
from .cleaning import close_old_connections_outside_transactions, without_old_connections
from .mailbox import Mailbox, mailbox_of
from .process import default_pool

_P = ParamSpec("_P")
_R = TypeVar("_R")


class DatabaseSyncToAsync(SyncToAsync[_P, _R], Generic[_P, _R]):
    """Call a synchronous function that uses the database from async code.

    Wrap the function where you call it, ``await database_sync_to_async(get_name)(user_id)``, or
    decorate a function or method with ``@database_sync_to_async``, or with what it is to be told:
    ``@database_sync_to_async(thread_sensitive=False)``.

    The function runs on a worker of the pool, a thread with its own database connections; at most
    ``MAX_THREADS`` calls run at one time, the others wait in line. Under a live synchronous frame
    (``async_to_sync``: a sync view, Django's ``TestCase``, a ``SyncConsumer`` handler) it runs on
    that frame's thread instead, and so in its transaction.

    Old connections are closed before and after the call, as in ``channels.db``. A transaction that
    the function leaves open is rolled back.

    **Cancellation.** If the awaiting task is cancelled before the function starts, it never starts.
    Once it runs on a worker, PostgreSQL is asked to cancel its statement, and those that follow in
    the function; the worker is free when the function has returned. On other databases, and under
    a synchronous frame, it runs to its end.

    :param func: a synchronous callable.
    :param thread_sensitive: leave it out for a worker of the pool. ``True`` means what it means in
        asgiref: the one thread of the surrounding context or process, where it runs to its end.
        ``False`` means any free worker, even under a synchronous frame; where none is free, as if
        it was left out, but never in a transaction.
    :param executor: as in asgiref, with ``thread_sensitive=False``: run there to its end, outside
        the pool and its bound.
    :param context: as in asgiref: the ``contextvars.Context`` to run in.
    :param green: with ``ORMBRIDGE["GREEN"]``: whether it runs on the event loop's own thread.
    :raises TypeError: if *func* is not callable or is a coroutine function, or *executor* comes
        without ``thread_sensitive=False``.

    The call itself raises what the function raises (``StopIteration`` as ``RuntimeError``),
    :exc:`PoolTimeout` if it had to wait longer than ``TIMEOUT`` seconds for a worker, or at once
    where waiting is no use, and :exc:`PoolClosed` while the interpreter exits.

    See `asgiref's SyncToAsync <https://github.com/django/asgiref#function-wrappers>`_.
    """

    def __new__(cls, *function: Any, **options: Any) -> Any:
        """Make a decorator where there are options and no function, or else what it makes."""
        ours = cls.__init__ is DatabaseSyncToAsync.__init__  # a subclass may take what it likes
        if options and not function and "func" not in options and ours:
            return functools.partial(cls, **options)
        return super().__new__(cls)

    def __init__(
        self,
        func: Callable[_P, _R],
        thread_sensitive: bool | None = None,
        executor: ThreadPoolExecutor | None = None,
        context: contextvars.Context | None = None,
        green: bool | None = None,
    ) -> None:
        # asgiref's default is True, and refuses an executor.
        sensitive = True if thread_sensitive is None else thread_sensitive
        super().__init__(func, thread_sensitive=sensitive, executor=executor, context=context)
        self._placed_by_asgiref = thread_sensitive is True or executor is not None
        if self._placed_by_asgiref:
            self.func = without_old_connections()(func)
        self._anywhere = thread_sensitive is False
        self._green = green
        self._static = isinstance(func, staticmethod)

    __new__.__signature__ = inspect.signature(__init__)  # type: ignore[attr-defined]

    async def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call the function on a thread, and wait for what it returns."""
        __traceback_hide__ = True
        if self._placed_by_asgiref:
            return await super().__call__(*args, **kwargs)

        before = contextvars.copy_context()
        variables = before.copy() if self.context is None else self.context
        child = functools.partial(self.func, *args, **kwargs) if args or kwargs else self.func
        mailbox = mailbox_of(asyncio.get_running_loop())
        # Of the class: update_wrapper() has put the attributes of a wrapped class among our own.
        call = type(self).make_call(self, self.func, mailbox, variables, child, self._green)
        future, awaited = call.future, call.awaits
        try:
            routes.place(call, self._anywhere)
            return await future  # type: ignore[misc, no-any-return]
        except asyncio.CancelledError as error:
            return await go_on(call, error, awaited)  # type: ignore[no-any-return]
        finally:
            if self.context is None:
                take_over(variables, before, mailbox.loop)
            # An exception's traceback holds this frame, which must not hold the exception.
            del call, future

    def make_call(
        self: Any, name: Any, mailbox: Mailbox, variables: Context, child: Job, green: Any = None
    ) -> Call:
        """Return a call that runs *child* as asgiref would, in what is handled here: an exception.

        :param name: see :class:`.Call`.
        :param variables: the context to run it in.
        :param green: whether it may run on the loop's thread, or the alias of the database that it
            asks; None if its function is to say.
        """
        default_pool()  # which loads the wings
        # A method, and called like asgiref calls it: tools that trace calls replace it.
        # To ask has_locals() here costs less than on the thread, which has other things in its
        # caches.
        run: Callable[..., Any] = variables.run
        if has_locals(variables):
            run = functools.partial(run, move_locals, variables)
        awaits: list[asyncio.Task[Any]] = []
        info = sys.exc_info()
        job = functools.partial(self.thread_handler, mailbox.loop, info, awaits, run, child)
        call = Call(job, name, mailbox)
        call.awaits = awaits
        # A subclass may do something around the function, as that of Channels does, or a tool.
        if hooks.mark is not None and type(self).thread_handler is own_handler:
            # What asgiref is to place, and what others wrap, is not the bridge's to say.
            ours = green is None and not getattr(self, "_placed_by_asgiref", True)
            hooks.mark(call, hooks.green if ours else green, info[1], variables, child)
        return call

    def __get__(self, parent: Any, objtype: type | None = None) -> Any:
        """Bind a decorated method to its instance. On the class it stays unbound."""
        if parent is None or self._static:
            return self
        return super().__get__(parent, objtype)


if TYPE_CHECKING:
    # A function, which returns one: so type checkers carry over each overload of what it is given.
    # The first overload is for mypy, which does so only of a function with a single parameter.

    @overload
    def database_sync_to_async(func: Callable[_P, _R]) -> Callable[_P, Coroutine[Any, Any, _R]]: ...
    @overload
    def database_sync_to_async(
        func: Callable[_P, _R],
        thread_sensitive: bool | None = None,
        executor: ThreadPoolExecutor | None = None,
        context: contextvars.Context | None = None,
        green: bool | None = None,
    ) -> Callable[_P, Coroutine[Any, Any, _R]]: ...
    @overload
    def database_sync_to_async(
        **options: Any,
    ) -> Callable[[Callable[_P, _R]], Callable[_P, Coroutine[Any, Any, _R]]]: ...
    def database_sync_to_async(*function: Any, **options: Any) -> Any:
        """Stand for the class, which has the docstring."""
else:
    #: The class is in CamelCase; as a callable and decorator it goes by this name.
    database_sync_to_async = DatabaseSyncToAsync


async def go_on(call: Call, error: BaseException, awaited: list[asyncio.Task[Any]] | None) -> Any:
    """Do as asgiref does where the task that awaits *call* was cancelled, by *error*.

    What the function awaits through async_to_sync is cancelled, too. If that goes on in spite of
    it, so does the function, and so do we.
    """
    try:
        # Without a future, its outcome came meanwhile.
        while not call.cancel() and await _goes_on(awaited) and call.future is not None:
            call.future = future = call.mailbox.loop.create_future()
            try:
                return await future
            except asyncio.CancelledError as again:
                error = again
        hooks.stop(call)
        raise error
    finally:
        # An exception's traceback holds this frame, which must not hold the exception.
        call = error = future = None  # type: ignore[assignment]


async def _goes_on(awaited: list[asyncio.Task[Any]] | None) -> bool:
    """Cancel what the function awaits, if it does. Returns whether that went on in spite of it."""
    if awaited:
        awaited[0].cancel()
        with suppress(asyncio.CancelledError):
            await awaited[0]
            return True
    return False


async def aclose_old_connections() -> None:
    """Close old connections where Django's own ``a``-methods run, as in ``channels.db``.

    That is the thread of the surrounding context or process. Workers of the pool clean their own
    connections, so inside :class:`BridgeMiddleware` there is nothing to do. A connection in a
    transaction is left alone.
    """
    route = routes.current_route.get()
    if route is None or route.frame is not None or not route.takes_all:
        await sync_to_async(close_old_connections_outside_transactions)()
