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


class Iteration:
    """A generator that a call was given, and whether anybody still iterates on it."""

    #: What closes the generator when nobody does. One that nobody but the user's code knows closes
    #: itself as it is collected.
    close: Any = None
    #: Whether nobody does.
    unused = False
    _lease: Any = None  # on whose thread it is suspended: a weak reference

    def __init__(self, loop: Any, generator: Any, anchor: Any, close: Any = None) -> None:
        """Make one in the task that iterates, whose event loop is *loop*.

        :param anchor: what is collected when nobody iterates any more.
        """
        self.loop, self.task = loop, current_task()
        #: Until the call has run.
        self.generator = generator
        # It does not keep what has it: each chunk would leave a cycle behind.
        noted: Any = weakref.WeakMethod(self.collected)
        self.anchor = weakref.ref(anchor, lambda anchor: (note := noted()) and note(anchor))
        if close is not None:
            self.close = close

    def note(self, lease: Any) -> None:
        """See what has become of the generator, now that the call has run on *lease*."""
        generator, self.generator = self.generator, None
        with lease.lock:
            if generator is not None and not generator.gi_suspended:
                lease.generators.pop(id(generator), None)
            elif generator is not None:
                lease.generators[id(generator)] = self
                self._lease, _owners[generator] = weakref.ref(lease), lease

    def collected(self, anchor: object) -> None:
        """See that it is let go of, because its *anchor* was collected. Any thread."""
        # The worker sees this before its next call. The user's own generators clean up after this,
        # on this thread: let them first.
        self.unused = self.close is not None
        later(self.loop, self.let_go)

    def let_go(self) -> None:
        """Have it closed on its thread: nobody iterates on it any more. Any thread."""
        self.unused = True
        if self._lease is not None and (lease := self._lease()) is not None:
            later(self.loop, lease.look)

    def refuse_more(self) -> None:
        """Let go of it, and have an iteration of Django's raise if it goes on.

        Django would take the generator that was closed for the end of the rows.
        """
        self.unused = True
        for cell in getattr(self.anchor(), "__closure__", None) or ():
            iterable = cell.cell_contents
            if isinstance(iterable, BaseIterable):
                # It asks for the size of its chunks before each one, and after.
                namespace = {"chunk_size": property(_raise_closed)}
                iterable.__class__ = type(type(iterable).__name__, (type(iterable),), namespace)


class SuspendedGenerators(dict[int, Iteration]):
    """The generators that keep one lease, by their ids. Only its thread adds and removes them."""

    def abandon(self, all_of_them: bool = False) -> None:
        """Let go of those on which no task that lives on iterates."""
        own = current_task()  # with which the context ends
        # A copy: the worker may be closing others, without the lock.
        for iteration in list(self.values()):
            task = iteration.task() if iteration.task not in (None, own) else None
            if all_of_them or task is None or task.done():
                iteration.refuse_more()

    def close_unused(self) -> None:
        """Let go of those on which nobody iterates. Runs on the worker, without the lock."""
        for key, iteration in list(self.items()):
            if iteration.unused:
                self.pop(key, None)
                if iteration.close is not None:
                    with bounded(), suppress(Exception):  # the connection broke
                        iteration.close()


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
    if call.iteration is None and (child := child_of(call.function)) is not None:
        arguments = (*child.args, *child.keywords.values())
        generator = next((each for each in arguments if type(each) is GeneratorType), None)
        if generator is not None:
            # This function of Django's lives exactly as long as the iteration.
            is_chunk = getattr(call.name, "__qualname__", None) == CHUNKS
            ends = (call.name, generator.close) if is_chunk else (generator,)
            call.iteration = Iteration(call.mailbox.loop, generator, *ends)
    return None if call.iteration is None else _owners.get(call.iteration.generator)


def later(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *args: Any) -> None:
    """Call *function* on *loop*, or here where that is closed.

    For what is collected: it takes locks, which this thread may be in the middle of.
    """
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:  # the loop is closed
        function(*args)
