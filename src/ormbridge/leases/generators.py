"""Generators that a call left suspended: what keeps a worker between the chunks of ``stream()``.

Each chunk is a call that has the suspended generator as an argument; Django's ``aiterator()`` does
the same. Its cursor belongs to one connection, so all of these calls have to run on one worker,
until the generator ends or nobody iterates on it any more. Then its worker closes it, before
whatever it runs next; Django would close its own on the event loop's thread. When the context ends,
that holds for what its ended tasks, and the one that ends it, have left suspended.

Assumes that the lease's lock is held, except where a method says otherwise.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Callable, Generator
from contextlib import suppress
from types import GeneratorType
from typing import Any

from django.db.models.query import BaseIterable

from ..core.asgiref import child_of
from ..core.call import Call
from ..core.errors import LeaseClosed
from ..postgres.canceller import CHUNKS, bounded

_Task = weakref.ref["asyncio.Task[Any]"] | None


# Suspended generators, and the leases on whose threads they go on.
_owners: weakref.WeakKeyDictionary[Generator[Any, Any, Any], Any] = weakref.WeakKeyDictionary()


class _Suspended:
    """One of them, and whether anybody still iterates on it."""

    def __init__(self, task: _Task, close: Callable[[], object] | None) -> None:
        self.task = task
        # A generator that nobody but the user's code knows closes itself as it is collected.
        self.close = close
        self.anchor: weakref.ref[Any] | None = None
        self.unused = False

    def refuse_more(self) -> None:
        """Let go of it, and have an iteration of Django's raise if it goes on.

        Django would take the generator that was closed for the end of the rows.
        """
        self.unused = True
        for cell in getattr(self.anchor and self.anchor(), "__closure__", None) or ():
            iterable = cell.cell_contents
            if isinstance(iterable, BaseIterable):
                # It asks for the size of its chunks before each one, and after.
                namespace = {"chunk_size": property(_raise_closed)}
                iterable.__class__ = type(type(iterable).__name__, (type(iterable),), namespace)


class SuspendedGenerators(dict[int, _Suspended]):
    """The generators that keep one lease, by their ids. Only its thread adds and removes them."""

    def __init__(self, lease: Any) -> None:
        self._lease = weakref.ref(lease)

    def note(self, call: Call) -> None:
        """See what has become of the generator that *call*, which has run, was given."""
        generator, call.generator = call.generator, None
        if generator is None:
            return
        if not generator.gi_suspended:  # type: ignore[attr-defined] # not in typeshed yet
            self.pop(id(generator), None)
            _owners.pop(generator, None)
            return
        anchor: Any = generator
        close: Callable[[], object] | None = None
        if call.iteration is not None:
            anchor, close = call.iteration[0](), call.iteration[1]
        elif getattr(call.name, "__qualname__", None) == CHUNKS:
            # This function of Django's lives exactly as long as the iteration.
            anchor, close = call.name, generator.close
        suspended = self[id(generator)] = _Suspended(call.task, close)
        suspended.unused = anchor is None  # collected while the call ran
        if anchor is not None:
            collected = functools.partial(self._collected, call.mailbox.loop, suspended)
            suspended.anchor = weakref.ref(anchor, collected)
            _owners[generator] = self._lease()

    def _collected(self, loop: Any, suspended: _Suspended, anchor: weakref.ref[Any]) -> None:
        # The worker sees this before its next call. The user's own generators clean up after this,
        # on this thread: let them first.
        suspended.unused = suspended.close is not None
        later(loop, self._forget, suspended)

    def _forget(self, suspended: _Suspended) -> None:
        suspended.unused = True
        if (lease := self._lease()) is not None:
            lease.look()

    def abandon(self, all_of_them: bool = False) -> None:
        """Let go of those on which no task that lives on iterates."""
        own = current_task()  # with which the context ends
        # A copy: the worker may be closing others, without the lock.
        for suspended in list(self.values()):
            task = suspended.task() if suspended.task not in (None, own) else None
            if all_of_them or task is None or task.done():
                suspended.refuse_more()

    def close_unused(self) -> None:
        """Let go of those on which nobody iterates. Runs on the worker, without the lock."""
        for key, suspended in list(self.items()):
            if suspended.unused:
                self.pop(key, None)
                if suspended.close is not None:
                    with bounded(), suppress(Exception):  # the connection broke
                        suspended.close()


def _raise_closed(iterable: BaseIterable[Any]) -> int:
    label = iterable.queryset.model._meta.label  # noqa: SLF001 # it is documented
    raise LeaseClosed(
        f"the iteration over {label} was closed: the block, request or connection in which it "
        "began has ended; iterate to its end there [rows-ended]"
    )


def current_task() -> _Task:
    """Return the running task."""
    with suppress(RuntimeError):  # this thread runs no loop
        if (task := asyncio.current_task()) is not None:
            # Weak: a task knows its context variables, and so the contexts before this one.
            return weakref.ref(task)
    return None


def owner_of(call: Call) -> Any:
    """Look for a generator among the arguments of *call*. Runs in the task that makes the call.

    :returns: the lease on whose thread it goes on, or None.
    """
    if (child := child_of(call.function)) is not None:
        arguments = (*child.args, *child.keywords.values())
        call.generator = next((each for each in arguments if type(each) is GeneratorType), None)
        if call.generator is not None:
            call.task = current_task()
            return _owners.get(call.generator)
    return None


def later(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: Any) -> None:
    """Call *function* on *loop*, or here where that is closed.

    For what is collected: it takes locks, which this thread may be in the middle of.
    """
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop is closed
        function(*args)
