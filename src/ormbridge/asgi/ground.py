"""What asgiref sends to a thread goes where the calls of the running code go (step 2 of a call).

Django's ``a``-methods, ``channels.db``, sync views and all else of asgiref comes here by one of two
ways. Inside a route the call itself goes straight there: :func:`call_on_route` stands in for
``SyncToAsync.__call__``, and answers at once what needs no thread. What comes through an executor
all the same, below a frame that has ended, takes the public seam,
``ThreadSensitiveContext(executor=…)``.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from asgiref.sync import SyncToAsync

from ..core import route as routes
from ..core.asgiref import Ground, GroundBelow, child_of, take_over
from ..core.bridge import DatabaseSyncToAsync, go_on
from ..core.call import Call
from ..core.mailbox import mailbox_of
from ..core.route import Route
from ..postgres.canceller import awaited_by, may_be_stopped
from .context import LeaseContext
from .threadless import answer


def _give_up(call: Call, future: asyncio.Future[Any]) -> None:
    """Give *call* up if *future*, which asgiref awaits, was cancelled with the awaiting task."""
    if future.cancelled() and not call.cancel():
        call.stop()


class RouteGround(Ground):
    """What asgiref sends goes where the calls of the running code go."""

    def submit(  # type: ignore[override] # run_in_executor takes an asyncio future as well
        self, job: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> asyncio.Future[Any]:
        """Run what asgiref submits. Runs on an event loop's thread.

        :raises PoolTimeout: if there is no worker, and waiting for one would deadlock or was in
            vain before.
        :raises LeaseClosed: if the job belongs to a block that has ended.
        """
        loop = asyncio.get_running_loop()
        child = child_of(job)
        call = Call(job, child.func if child is not None else job, mailbox_of(loop))
        call.awaits = awaited_by(job, child)
        future: Any = call.future
        future.add_done_callback(partial(_give_up, call))
        routes.place(call)
        return future  # type: ignore[no-any-return]


GROUND = RouteGround()
#: What :func:`call_on_route` stands in for.
call_of_asgiref = SyncToAsync.__call__
_make_call: Any = DatabaseSyncToAsync.make_call


async def call_on_route(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Call what ``sync_to_async`` wraps: as asgiref does, but inside a route straight there.

    Spared are an executor, its future, asgiref's shield around that, and a turn of the loop.
    """
    __traceback_hide__ = True
    route = routes.current_route.get()
    if route is None or not (self._thread_sensitive and GROUND.is_next()):
        return await call_of_asgiref(self, *args, **kwargs)
    loop = asyncio.get_running_loop()
    variables = contextvars.copy_context() if self.context is None else self.context
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
            take_over(variables)
        # An exception's traceback holds this frame, which must not hold the exception.
        call = future = child = make = None  # type: ignore[assignment]


SyncToAsync.__call__ = call_on_route  # type: ignore[method-assign]


class on_ground(GroundBelow):  # noqa: N801 # it reads as what it does
    """Have the calls of an ``async with``, and of tasks begun in it, go to *route*: asgiref's, too.

    Tasks that outlive it go on sending them there.
    """

    def __init__(self, route: Route) -> None:
        super().__init__(GROUND)
        self._route = route

    async def __aenter__(self) -> None:
        self._token = routes.current_route.set(self._route)
        await super().__aenter__()

    async def __aexit__(self, *exc: object) -> None:
        await super().__aexit__()
        with suppress(ValueError):  # collected, and so in another context
            routes.current_route.reset(self._token)
