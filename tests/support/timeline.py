"""Watch what the calls of an example do: when, on which thread, in which request or socket.

::

    timeline = Timeline()
    timeline.watch(module, "query")
    application = timeline.application(module.application)
    ...  # run it
    recorded_timeline("asgi/sockets", timeline)

Nothing of the package is touched: the functions of the example are replaced by ones that note the
time and the thread and call them. The request or socket travels in a context variable, which
asgiref and the bridge carry to the thread.
"""

import functools
import inspect
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from asgiref.sync import SyncToAsync
from django.db import connections

from docs._ext.record.spans import Span


@dataclass
class Place:
    """A request, a socket or what else calls belong to."""

    name: str
    #: When the call that comes next was asked for, on the clock of time.monotonic().
    asked: float


_place: ContextVar[Place | None] = ContextVar("_place", default=None)


class Timeline:
    """Gathers spans, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[Span] = []
        #: The driver's connections in the order they were seen; kept, so that no id comes twice.
        self._connections: list[Any] = []

    @property
    def spans(self) -> tuple[Span, ...]:
        """What was seen so far, in the order it began; the first call was asked for at 0."""
        with self._lock:
            found = sorted(self._spans, key=lambda span: (span.began, not span.held))
        first = min((span.asked for span in found), default=0.0)
        return tuple(
            replace(
                span,
                asked=round(span.asked - first, 6),
                began=round(span.began - first, 6),
                ended=round(span.ended - first, 6),
            )
            for span in found
        )

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Let the calls of this context belong to *name*, such as ``"socket 1"``."""
        token = _place.set(Place(name, time.monotonic()))
        try:
            yield
        finally:
            _place.reset(token)

    def watch(self, owner: Any, name: str, call: str | None = None) -> None:
        """Note each call of the function *name* of a module or class, as *call*.

        It may be a plain function, a method, or one that ``database_sync_to_async`` made; what is
        awaited counts as asked for from there. Anything else was asked for when its request
        arrived, or the message of its socket.
        """
        found = inspect.getattr_static(owner, name)
        if not isinstance(found, SyncToAsync):
            setattr(owner, name, self._noting(found, call or name))
            return
        found.func = self._noting(found.func, call or name)

        @functools.wraps(found.func)
        async def ask(*args: Any, **kwargs: Any) -> Any:
            here = _place.get()
            with self.within(here.name if here else ""):  # calls at once: each has its own
                return await found(*args, **kwargs)

        setattr(owner, name, ask)

    def _noting(self, function: Callable[..., Any], call: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            began = time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                ended = time.monotonic()
                here = _place.get() or Place("", began)
                thread = threading.current_thread().name
                opened = tuple(map(self._number, open_connections()))
                span = Span(call, here.name, thread, opened, here.asked, began, ended)
                here.asked = ended  # what the same place does next begins after this
                with self._lock:
                    self._spans.append(span)

        return noted

    def _number(self, connection: Any) -> int:
        with self._lock:
            for number, seen in enumerate(self._connections, start=1):
                if seen is connection:
                    return number
            self._connections.append(connection)
            return len(self._connections)

    def application(self, application: Any, *, holds: bool = False) -> Any:
        """Return *application* with each scope named: ``request 1``, ``socket 1``, and so on.

        :param holds: whether a request keeps its thread from its first call to its end. The test
            that says so must show it.
        """
        counters = {"http": itertools.count(1), "websocket": itertools.count(1)}
        words = {"http": "request", "websocket": "socket"}

        async def named(scope: Any, receive: Any, send: Any) -> None:
            kind = scope["type"]
            if kind not in words:
                await application(scope, receive, send)
                return
            with self.within(f"{words[kind]} {next(counters[kind])}"):
                here = _place.get()
                assert here is not None

                async def receive_and_note() -> Any:
                    message = await receive()
                    here.asked = time.monotonic()
                    return message

                await application(scope, receive_and_note, send)
                if holds:
                    self._hold(here)

        return named

    def _hold(self, here: Place) -> None:
        ended = time.monotonic()
        with self._lock:
            mine = [span for span in self._spans if span.where == here.name]
            if mine:
                threads = Counter(span.thread for span in mine)
                assert len(threads) == 1, f"{here.name} was not held on one thread: {threads}"
                first = min(mine, key=lambda span: span.began)
                span = replace(first, call="", asked=first.began, ended=ended, held=True)
                self._spans.append(span)


def open_connections() -> list[Any]:
    """Return the driver's open connections of the calling thread."""
    found = [each.connection for each in connections.all(initialized_only=True)]
    return [each for each in found if each is not None]
