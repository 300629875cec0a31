"""What tools and packages put around functions of asgiref and Django."""

import functools

from asgiref.sync import SyncToAsync
from django.db.transaction import Atomic


def hand_on_by_keyword(monkeypatch):
    """Have each call hand a keyword on to its ``thread_handler``, as New Relic does.

    Without that, the function would get it. Returns a list of what came there.
    """
    call, handle = SyncToAsync.__call__, SyncToAsync.thread_handler
    handled = []

    async def traced(self, *args, **kwargs):
        return await call(self, *args, **kwargs, _trace="trace")

    def thread_handler(self, *args, **kwargs):
        handled.append(args[-1].keywords.pop("_trace"))
        return handle(self, *args, **kwargs)

    monkeypatch.setattr(SyncToAsync, "__call__", traced)
    monkeypatch.setattr(SyncToAsync, "thread_handler", thread_handler)
    return handled


def wrap_atomic(monkeypatch):
    """Put something around the end of each ``atomic()``, as packages that cache queries do."""
    leave = Atomic.__exit__

    @functools.wraps(leave)
    def leave_and_note(self, *error):
        leave(self, *error)

    monkeypatch.setattr(Atomic, "__exit__", leave_and_note)
