"""Where the calls of the running code go: its route (step 2 of a call).

One context variable says so. A request, a block, a stream and a test each *are* a route; code that
has none goes to the pool. The innermost wins: a live synchronous frame that was entered inside the
route goes before it, because the thread that waits there holds the connections of what runs above.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from contextvars import ContextVar
from functools import partial

from asgiref.current_thread_executor import CurrentThreadExecutor

from .asgiref import is_inside, live_frame
from .call import Call
from .process import after_fork, default_pool


class Route:
    """A place where calls go."""

    #: Whether all calls have to stay in it, ``thread_sensitive=False`` or not: a test's.
    is_alone = False
    #: Whether what asgiref sends to a thread goes there as well.
    takes_all = True
    #: The synchronous frame whose thread runs its calls; None if workers do.
    frame: CurrentThreadExecutor | None = None

    def check(self, call: object) -> None:
        """See that *call* may still run.

        :raises LeaseClosed: if it belongs to something that has ended.
        """

    def place(self, call: Call) -> None:
        """Find a thread for *call*. Runs in the task that makes it.

        :raises PoolTimeout: if only a deadlock could come of waiting for a worker.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Give back a lease that is held between calls, as soon as nothing is left open."""


#: The route of the running code. Others read it from this module: a test may put a route of its own
#: in its place (``testing/``).
current_route: ContextVar[Route | None] = ContextVar("ormbridge.route", default=None)


def frame_inside(route: Route | None, loop: AbstractEventLoop) -> CurrentThreadExecutor | None:
    """Return the live synchronous frame that the running code has entered inside *route*.

    A route that is itself below a frame keeps that one, also where it has ended: then one further
    out may be live, and is not inside.
    """
    frame = live_frame(loop)
    if frame is None or route is None or is_inside(frame, route.frame):
        return frame
    return None


def place(call: Call, anywhere: bool = False) -> None:
    """Find a thread for *call*. Runs in the task that makes it.

    :param anywhere: ``thread_sensitive=False``: any free worker comes first.
    :raises LeaseClosed: if it belongs to a block that has ended.
    :raises PoolTimeout: if only a deadlock could come of waiting for a worker.
    """
    route = call.route = current_route.get()
    if route is not None and not anywhere:
        route.check(call)
    pool = default_pool()
    if anywhere and not (route is not None and route.is_alone):
        if pool.take(call, wait=False):
            return
        call.stays_out = True
    while (frame := frame_inside(route, call.mailbox.loop)) is not None:
        if call.enter(frame, pool.settings.timeout):
            return
    if route is not None:
        route.place(call)
    else:
        call.place(pool)


after_fork(partial(current_route.set, None))  # what it has is the parent's
