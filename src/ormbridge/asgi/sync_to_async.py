"""What asgiref sends to a thread goes where the calls of the running code go (step 2 of a call).

Django's ``a``-methods, ``channels.db``, sync views and all else of asgiref comes here:
:func:`call_on_route` stands in for ``SyncToAsync.__call__``. Inside a route the call goes straight
there, and what needs no thread is answered at once. Below a live frame, in a
``ThreadSensitiveContext`` with an executor of one's own, and where there is no route, asgiref's own
runs.
"""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import suppress
from functools import partial
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext

from ..core import route as routes
from ..core.asgiref import frame_thread, has_own_executor, take_over
from ..core.bridge import DatabaseSyncToAsync, go_on
from ..core.mailbox import mailbox_of
from ..leases.generators import Iteration
from ..leases.lease import Lease
from ..postgres.canceller import CHUNKS, may_be_stopped
from .context import LeaseContext
from .threadless import answer

#: What :func:`call_on_route` stands in for.
call_of_asgiref = SyncToAsync.__call__
_call_of_bridge = DatabaseSyncToAsync.__call__
_make_call: Any = DatabaseSyncToAsync.make_call


async def call_on_route(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what ``sync_to_async`` wraps: as asgiref does, but inside a route straight there.

    Spared are an executor, its future, asgiref's shield around that, and a turn of the loop.
    """
    __traceback_hide__ = True
    if isinstance(self, DatabaseSyncToAsync) and not self._placed_by_asgiref:
        return await _call_of_bridge(self, *args, **kwargs)
    loop, route = asyncio.get_running_loop(), routes.current_route.get()
    if route is None or not (self._thread_sensitive and _takes(route, loop)):
        try:
            return await call_of_asgiref(self, *args, **kwargs)
        finally:
            if route is not None and getattr(self.func, "__qualname__", None) == CHUNKS:
                _look_after(self.func, route, loop, *args)
    before = contextvars.copy_context()
    variables = before.copy() if self.context is None else self.context
    child = partial(self.func, *args, **kwargs)
    make: Any = partial(_make_call, self, self.func, mailbox_of(loop), variables, child)
    try:
        # No call is made where *child* alone will do.
        outcome = answer(lambda: make().function(), child, loop, variables)
        if isinstance(outcome, asyncio.Future):
            return await outcome
        call = make()
        awaited, call.route = call.awaits, route
        call.awaits = awaited if may_be_stopped(self.func) else None
        route.check(call)
        try:
            if outcome is not None and isinstance(route, LeaseContext):
                return await route.do_without(call, outcome)
            future: Any = call.future
            route.place(call)
            return await future
        except asyncio.CancelledError as error:
            return await go_on(call, error, awaited)
    finally:
        if self.context is None:
            take_over(variables, before, loop)
        # An exception's traceback holds this frame, which must not hold the exception.
        call = future = child = make = None  # type: ignore[assignment]


proxy: Any = vars(SyncToAsync)["__call__"]
if type(proxy) is type(call_on_route):  # isinstance() takes a proxy for a function
    SyncToAsync.__call__ = call_on_route  # type: ignore[method-assign]
else:
    # wrapt's, as New Relic's: it calls what it has inside, and all calls are to go through it.
    call_of_asgiref, proxy.__wrapped__ = proxy.__wrapped__, call_on_route
    DatabaseSyncToAsync.__call__ = proxy  # type: ignore[method-assign]


def _takes(route: routes.Route, loop: asyncio.AbstractEventLoop) -> bool:
    """Say whether *route* takes what asgiref sends to a thread: nothing was entered inside it."""
    takes = route.takes_all and (route.is_alone or not has_own_executor())
    return takes and routes.frame_inside(route, loop) is None


def _look_after(func: Any, route: routes.Route, loop: Any, generator: Any) -> None:
    """Have *generator*, of an ``aiterator()`` below a frame, closed on its worker if it is left.

    The loop's thread would close it, and the worker may have another request by then.
    """
    frame = routes.frame_inside(route, loop)
    lease = getattr(frame and frame_thread(frame), "lease", None)
    if isinstance(lease, Lease):
        Iteration(loop, generator, func, generator.close).note(lease)


class on_route:  # noqa: N801 # it reads as what it does
    """Have the calls of a ``with``, and of tasks begun in it, go to *route*: asgiref's, too.

    Tasks that outlive it go on sending them there.
    """

    def __init__(self, route: routes.Route) -> None:
        self._route = route

    def __enter__(self) -> None:
        self._token = routes.current_route.set(self._route)
        # An executor that was given around it is not the innermost any more.
        self._outer = SyncToAsync.thread_sensitive_context.set(ThreadSensitiveContext())

    def __exit__(self, *exc: object) -> None:
        with suppress(ValueError):  # collected, and so in another context
            SyncToAsync.thread_sensitive_context.reset(self._outer)
            routes.current_route.reset(self._token)
