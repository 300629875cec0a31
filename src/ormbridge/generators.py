"""Generators that a call left suspended: what keeps a worker between the chunks of ``aiterator()``.

Django sends each chunk to a thread as a call that has the suspended generator as an argument. Its
cursor belongs to one connection, so all of these calls have to run on one worker, until the
generator ends or nobody iterates on it any more. Then Django would close the cursor on the event
loop's thread; here its worker does. When the context ends, that holds for what its ended tasks, and
the one that ends it, have left suspended.

Assumes that the lease's lock is held, except where a method says otherwise.
"""

from __future__ import annotations

import asyncio
import functools
import weakref
from collections.abc import Generator
from contextlib import suppress
from types import GeneratorType
from typing import TYPE_CHECKING, Any

from django.db.models.query import BaseIterable

from .call import Call
from .threadless import child_of

if TYPE_CHECKING:
    from .context import LeaseContext
    from .lease import Lease

_Task = weakref.ref["asyncio.Task[Any]"] | None

# The function that sends the chunks of aiterator() to a thread.
_CHUNKS = f"{BaseIterable.__qualname__}._async_generator.<locals>.next_slice"

# Suspended generators, and the leases on whose workers they go on.
_owners: weakref.WeakKeyDictionary[Generator[Any, Any, Any], Lease] = weakref.WeakKeyDictionary()


class SuspendedGenerators:
    """The generators that keep one lease."""

    def __init__(self, lease: Lease) -> None:
        self._lease = weakref.ref(lease)
        # What is collected when nobody iterates any more; the task that did; and Django's
        # generators, which are closed on the worker then, and live until that is done.
        self._anchors: dict[weakref.ref[Any], tuple[_Task, Generator[Any, Any, Any] | None]] = {}
        self._unused: list[weakref.ref[Any]] = []

    def __bool__(self) -> bool:
        return bool(self._anchors)

    def clear(self) -> None:
        """Forget them all."""
        self._anchors.clear()

    def note(self, call: Call) -> None:
        """See what has become of the generator that *call*, which has run, was given."""
        generator, call.generator = call.generator, None
        lease = self._lease()
        if generator is None or lease is None:
            return
        # This function of Django's lives exactly as long as the iteration.
        of_django = getattr(call.name, "__qualname__", None) == _CHUNKS
        anchor = call.name if of_django else generator
        if generator.gi_suspended:  # type: ignore[attr-defined] # not in typeshed yet
            collected = functools.partial(self._collected, call.mailbox.loop)
            kept = generator if of_django else None
            self._anchors[weakref.ref(anchor, collected)] = call.task, kept
            _owners[generator] = lease
        else:
            self._anchors.pop(weakref.ref(anchor), None)
            _owners.pop(generator, None)

    def _collected(self, loop: Any, anchor: weakref.ref[Any]) -> None:
        # Other generators clean up after this, on the same thread: let them.
        try:
            loop.call_soon_threadsafe(self._forget, anchor)
        except RuntimeError:  # the loop is closed
            self._forget(anchor)

    def _forget(self, anchor: weakref.ref[Any]) -> None:
        self._unused.append(anchor)
        lease = self._lease()
        if lease is not None:
            lease.look_again()

    def abandon(self) -> None:
        """Let go of those on which no task that lives on iterates."""
        # A copy: the worker may be closing others, without the lock.
        for anchor, (task, _) in list(self._anchors.items()):
            if not lives_on(task):
                self._unused.append(anchor)

    def close_unused(self) -> None:
        """Let go of those on which nobody iterates. Runs on the worker, without the lock."""
        while self._unused:
            _, generator = self._anchors.pop(self._unused.pop(), (None, None))
            if generator is not None:
                _owners.pop(generator, None)
                with suppress(Exception):  # the connection broke
                    generator.close()


def find_generator(call: Call) -> None:
    """Look for a generator among the arguments of *call*. Runs in the task that makes the call."""
    child = child_of(call.function)
    if child is not None:
        arguments = (*child.args, *child.keywords.values())
        call.generator = next((each for each in arguments if type(each) is GeneratorType), None)
        if call.generator is not None:
            call.task = current_task()


def current_task() -> _Task:
    """Return the running task."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # this thread runs no loop
        task = None
    # Weak: a task knows its context variables, and so the contexts before this one.
    return weakref.ref(task) if task is not None else None


def lives_on(task: _Task) -> bool:
    """Say whether *task* still runs, and is not the running one, with which the context ends."""
    running = task() if task is not None else None
    return running is not None and not running.done() and task != current_task()


def owner_of(generator: Generator[Any, Any, Any] | None, context: LeaseContext) -> Lease | None:
    """Return the lease on whose worker a call of *context* with *generator* has to run."""
    owner = _owners.get(generator) if generator is not None else None
    return owner if owner and (owner.context is context or not owner.ended) else None
