"""What wings do at the core's bidding. Where none is loaded, nothing.

The core knows connections and threads, no servers and no blocks. What knows more adds itself here
as it is imported, and is imported by the first call (:data:`load`).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

#: Load the wings. Called as the pool is made, on the thread of the first call.
load: list[Callable[[], object]] = []
#: Look after a connection, Django's object, which was opened or comes back from a lease; the second
#: argument is the thread's :class:`.ThreadConnections`. On its thread.
attend: list[Callable[[Any, Any], object]] = []
#: Stop a call that runs and whose outcome nobody awaits. Any thread; returns at once.
stop: list[Callable[[Any], object]] = []
#: See to the connections of a thread on which a statement was stopped. On that thread.
settle: list[Callable[[Any], object]] = []
#: Break the connections on which a thread waits: those of a call, or after a lease, where the
#: second argument is None. Any thread; never waits.
cut: list[Callable[[Any, Any], object]] = []
#: Make a block in which a driver's connection is closed. On its thread.
closing: list[Callable[[Any], AbstractContextManager[None]]] = []
