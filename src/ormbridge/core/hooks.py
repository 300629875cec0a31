"""What wings do at the core's bidding. Where none is loaded, nothing.

The core knows connections and threads, no servers and no blocks. A wing that knows more puts what
it does in one of these places as it is imported, and is imported by the first call (:data:`load`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def _do_nothing(*args: object) -> None: ...


#: Load the wings that settings, the argument, ask for. Called as the pool is made, on the thread of
#: the first call.
load: Callable[[Any], object] = _do_nothing
#: Have a call run on its event loop's thread, if it may; see
#: :meth:`.DatabaseSyncToAsync.make_call`.
mark: Callable[..., object] | None = None
#: Whether a function of the bridge may, that does not say; None if that is up to the function.
green: bool | None = None
#: Run a lease, the second argument, on behalf of a worker, the first one, elsewhere than on the
#: worker's thread. Returns whether it is run there. Any thread.
begin: Callable[[Any, Any], object] = _do_nothing
#: Hand the outcome of a call to its caller at once, where that is safe. Returns whether it did.
deliver: Callable[[Any], object] = _do_nothing
#: End what waits on the calling thread for an event loop that does not run.
rescue: Callable[[], object] = _do_nothing
#: Look after a connection, Django's object, which was opened or comes back from a lease; the second
#: argument is the thread's :class:`.ThreadConnections`. On its thread.
attend: Callable[[Any, Any], object] = _do_nothing
#: Have the statement cancelled of a call, the argument, whose outcome nobody awaits, if it runs and
#: that may be. Any thread; returns at once.
stop: Callable[[Any], object] = _do_nothing
