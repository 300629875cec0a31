"""The model that the stateful test compares with: tasks, their jobs and blocks, and who rests."""

import asyncio
import threading

ALIASES = ("default", "other")


class Rest:
    """Knows which threads wait; told by the locks that they wait for."""

    def __init__(self):
        self.changed = threading.Condition()
        self.waiting = set()

    def lock(self):
        """Return a lock that is held."""
        lock = WatchedLock(self)
        lock.acquire()
        return lock


class WatchedLock:
    """A lock that tells who waits for it, from before that thread waits until it need not."""

    def __init__(self, rest):
        self._lock = threading.Lock()
        self._rest = rest
        self._waiter = None

    def acquire(self, blocking=True, timeout=-1):
        me = threading.current_thread()
        with self._rest.changed:
            if self._lock.acquire(blocking=False) or not blocking:
                return True
            self._waiter = me
            self._rest.waiting.add(me)
            self._rest.changed.notify_all()
        return self._lock.acquire(timeout=timeout)

    def release(self):
        with self._rest.changed:
            self._rest.waiting.discard(self._waiter)
            self._waiter = None
            self._lock.release()


class WatchedCondition(threading.Condition):
    """A condition that tells who waits for it, likewise."""

    def __init__(self, rest):
        super().__init__(threading.Lock())
        self._rest = rest
        self._resting = set()

    def wait(self, timeout=None):
        me = threading.current_thread()
        with self._rest.changed:
            self._resting.add(me)
            self._rest.waiting.add(me)
            self._rest.changed.notify_all()
        return super().wait(timeout)

    def notify(self, n=1):
        with self._rest.changed:
            self._rest.waiting -= self._resting
            self._resting.clear()
        super().notify(n)


class Loop(asyncio.SelectorEventLoop):
    """A loop that is turned by hand, and that other threads take for running all the time."""

    def __init__(self):
        self._turned_by = threading.current_thread()
        super().__init__()

    def is_running(self):
        # async_to_sync asks, on a worker; it would start a loop of its own.
        return super().is_running() or threading.current_thread() is not self._turned_by


class Unit:
    """A block in the model."""

    def __init__(self, kind, parent, line, using="default", savepoint=True, durable=False):
        self.kind = kind
        self.parent = parent
        # Where its calls wait; of a pinned(), known from its first call on.
        self.line = None if kind == "pinned" else line or self
        self.using = using
        self.savepoint = savepoint
        self.durable = durable
        self.nested = bool(atomics(parent, using))
        self.undoes = False  # whether its rollback undoes it, and not only a block around it
        self.lost = False  # whether its transaction was lost before its end
        self.closing = False
        self.commits = None
        self.atomic = None
        self.ended = None

    def chain(self):
        """Return the block and those around it, the innermost first."""
        unit = self
        while unit is not None:
            yield unit
            unit = unit.parent


def line_of(unit, actor):
    """Return where calls of *actor* in *unit* wait; None where each is a lease."""
    if actor.frame is not None:
        return actor.frame
    if unit is None:
        return actor.root.line() or actor.stream
    return unit.line or line_of(unit.parent, actor) or unit


def atomics(unit, using=None):
    """Return the atomic() blocks among *unit* and those around it, the outermost first."""
    chain = unit.chain() if unit is not None else ()
    return [e for e in chain if e.kind == "atomic" and using in (None, e.using)][::-1]


class Job:
    """A call, or the entering or leaving of a block, in the model."""

    def __init__(self, actor, kind, unit, gate, epoch):
        self.actor = actor
        self.kind = kind
        self.unit = unit
        self.gate = gate
        self.epoch = epoch
        self.started = self.running = self.over = False
        self.thread = None
        # Cancelled, or its time is up: it may still start, or not.
        self.given_up = False
        self.cancelled = False
        around = unit.parent if kind == "enter" else unit
        self.around = around
        chain = around.chain() if around and kind not in ("leave", "anywhere") else ()
        self.doomed = any(each.closing for each in chain)
        inner = atomics(around)
        self.turn_of = inner[-1] if inner else None
        self.refusals = 0  # of threads, before it was made
        self.line = line_of(around, actor)

    def __repr__(self):
        return f"<{self.kind} of actor {self.actor.number}>"


class Root:
    """A request, a socket, or neither, in the model."""

    def __init__(self, kind, epoch):
        self.kind = kind
        self.epoch = epoch
        self.ended = False
        self.refused = False  # a call of it, for want of a thread

    def line(self):
        """Return the line of calls outside of blocks: one where a worker is held."""
        return self if self.kind == "request" and not self.ended else None


class Actor:
    """A task that does what it is told."""

    def __init__(self, number, root, unit):
        self.number = number
        self.root = root
        self.unit = unit
        self.depth = 0
        self.frame = None  # the synchronous frame that it is in
        self.stream = None  # the one that has a worker for it
        self.streams = 0
        self.swallows = True
        self.cancelled = False
        self.order = None
        self.task = None

    def is_late(self):
        """Say whether a block around it has begun to close."""
        return self.unit is not None and any(each.closing for each in self.unit.chain())

    def has_one_line(self):
        """Say whether what it leaves open outside of blocks is of one line."""
        return self.root.kind == "plain" or self.root.line() is not None


class Frame:
    """A synchronous frame in the model: the line of what runs on its thread."""

    thread = None


class Hook:
    """A function given to on_commit(), in the model."""

    def __init__(self, kind, using, units):
        self.kind = kind
        self.using = using
        self.units = units

    def is_due(self):
        return all(unit.ended == "committed" for unit in self.units)
