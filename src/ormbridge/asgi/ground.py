"""What asgiref sends to a thread goes where the calls of the running code go (step 2 of a call).

Django's ``a``-methods, ``channels.db``, sync views and all else of asgiref comes here through
the public seam, ``ThreadSensitiveContext(executor=…)``. What needs no thread is answered at once.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..core import route as routes
from ..core.asgiref import Ground, GroundBelow, child_of
from ..core.call import Call
from ..core.mailbox import mailbox_of
from ..core.process import default_pool
from ..core.route import Route
from ..postgres.canceller import awaited_by
from .context import LeaseContext
from .threadless import answer


class CallFuture(asyncio.Future[Any]):
    """What asgiref awaits, and cancels when the awaiting task is cancelled."""

    call: Call

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the call as well."""
        if not self.call.cancel():
            self.call.stop()
        return super().cancel(msg)


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
        outcome = answer(job, child, loop) if child is not None else None
        if isinstance(outcome, asyncio.Future):
            return outcome
        call = Call(job, child.func if child is not None else job, mailbox_of(loop))
        call.awaits = awaited_by(job, child)
        route = call.route = routes.current_route.get()
        if route is not None:
            route.check(call)
        future = call.future = CallFuture(loop=loop)
        future.call = call
        if outcome is not None and isinstance(route, LeaseContext):
            return loop.create_task(route.do_without(call, outcome))
        if route is not None:
            route.place(call)
        else:  # it was entered in another context
            call.place(default_pool(), None)
        return future


GROUND = RouteGround()


class on_ground(GroundBelow):  # noqa: N801 # it reads as what it does
    """Have the calls of an ``async with``, and of tasks begun in it, go to *route*: asgiref's, too.

    Tasks that outlive it go on sending them there.
    """

    def __init__(self, route: Route) -> None:
        super().__init__(GROUND)
        self._route = route
        self._token: contextvars.Token[Route | None]

    async def __aenter__(self) -> None:
        self._token = routes.current_route.set(self._route)
        await super().__aenter__()

    async def __aexit__(self, *exc: object) -> None:
        await super().__aexit__()
        with suppress(ValueError):  # collected, and so in another context
            routes.current_route.reset(self._token)
