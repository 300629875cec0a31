"""How long a call may wait for PostgreSQL where nobody stops it: the beginning and end of a block.

The event loop looks after ``BOUND`` seconds, and then again until the call has ended.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..core.call import Call
from ..core.connections import ThreadConnections
from ..core.worker import Worker

#: Seconds between two looks at what was stopped, or waits in vain, at the most.
LONGEST_PAUSE = 0.1


def bound(call: Call, given_up: bool = True) -> None:
    """Have *call* wait no longer for PostgreSQL than BOUND seconds from now on. Its loop's thread.

    :param given_up: whether that holds for what runs before it, too.
    """
    call.stopping = call.stopping or given_up
    call.glances = call.glances or call.mailbox.watch(call, ThreadConnections.BOUND, glance)


def glance(calls: list[Call]) -> None:
    """Look after *calls*, which have waited too long for PostgreSQL, until they end. Their loop."""
    for call in calls:
        _cut(call)
        if not call.ended:
            call.glances = call.mailbox.watch(call, LONGEST_PAUSE, glance)


def _cut(call: Call) -> None:
    own, thread = call.connections, getattr(call.line, "thread", None)
    if own is None and call.stopping and isinstance(thread, Worker):
        own = thread.connections
    if own is not None:
        own.cut(call)
    if not call.closes and call.future is not None and not call.future.done():
        call.future.set_result(None)  # a beginning: it may be that it has no connection yet


async def outlast(
    future: asyncio.Future[Any], call: Call | None = None, gives_up: bool = False
) -> asyncio.CancelledError | None:
    """Wait for *future*, whatever cancels the running task. Returns what did.

    :param call: whose it is. Once the task is cancelled, PostgreSQL has BOUND seconds to answer.
    :param gives_up: whether the call is given up then; if it has not started, it is not waited for.
    """
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
            if gives_up and call is not None and call.cancel():
                break
            if call is not None:
                bound(call)
    return cancelled
