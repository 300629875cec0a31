"""Leases, pool and blocks under any order of events: what Hypothesis tries must hold.

Nothing is left to chance but the order of events. The test turns the event loop by hand, the clock
is its own, and a function on a worker waits at a gate until a rule opens it. After each rule
everything has come to rest: each worker waits for a lease, for a call, or at a gate.

What is done is compared with what a small model expects:

* never more workers than the bound, and none idle while somebody waits for one; fewer only where
  the system refused to start one, and without any nobody waits;
* calls of one line and block start in the order in which they came, plain calls as well;
* a call sees exactly the transactions of the blocks that it belongs to, savepoints in order;
* no call starts in a block that has begun to close, or after its caller gave it up;
* what a call wrote is there at the end if all blocks around it committed, and else is not;
* at the end every task has ended, and the pool is whole.

``ORMBRIDGE_TEST_EXAMPLES=20000`` tries more of them than the 150 of each run.
"""

import asyncio
import contextlib
import contextvars
import faulthandler
import os
import threading
from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from django.db import connection, connections, transaction
from django.db.backends.signals import connection_created
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from ormbridge import (
    BridgeMiddleware,
    LeaseClosed,
    PoolTimeout,
    atomic,
    database_sync_to_async,
    pinned,
    process,
    release,
)
from ormbridge.lease import Lease
from ormbridge.pool import Pool
from ormbridge.settings import Settings
from ormbridge.worker import Worker
from tests.gate import GUARD
from tests.settings import CHOICE

EXAMPLES = int(os.environ.get("ORMBRIDGE_TEST_EXAMPLES", "150"))
STEPS = 50
TIMEOUT = 100.0
"""Seconds of the test's own clock."""
PATIENCE = GUARD
MOST_ACTORS = 7

settings.register_profile(
    "ormbridge",
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    report_multiple_bugs=False,
)

job_of_context = contextvars.ContextVar("job_of_context")


class Failure(Exception):  # noqa: N818 - it is what a block is to fail with
    """Raised in a block, which is then rolled back."""


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


class Unit:
    """A block in the model."""

    def __init__(self, kind, parent, line):
        self.kind = kind
        self.parent = parent
        # Where its calls wait; of a pinned(), known from its first call on.
        self.line = None if kind == "pinned" else line or self
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


def line_of(unit, root):
    """Return where calls in *unit* wait; None where each is a lease."""
    if unit is None:
        return root.line()
    return unit.line or line_of(unit.parent, root) or unit


def atomics(unit):
    """Return the atomic() blocks among *unit* and those around it, the outermost first."""
    chain = unit.chain() if unit is not None else ()
    return [each for each in chain if each.kind == "atomic"][::-1]


class Job:
    """A call, or the entering or leaving of a block, in the model."""

    def __init__(self, actor, kind, unit, gate, epoch):
        self.actor = actor
        self.kind = kind
        self.unit = unit
        self.gate = gate
        self.epoch = epoch
        self.started = self.running = self.over = False
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
        self.line = line_of(around, actor.root)

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
        self.swallows = True
        self.cancelled = False
        self.order = None
        self.task = None


class Machine(RuleBasedStateMachine):
    """Tasks, on a pool, that make calls and open blocks."""

    picks = st.integers(0, 59)
    kinds_of_roots = st.sampled_from(["plain", "request", "socket"])
    pools: dict  # by their bound, for the next example: starting threads takes time
    rest: Rest
    abandoned: list

    @initialize(
        threads=st.integers(1, 3),
        scarce=st.booleans(),
        kinds=st.lists(kinds_of_roots, max_size=2),
    )
    def begin(self, threads, scarce, kinds):
        self.loop = asyncio.SelectorEventLoop()
        self.now = 1000.0
        self.epoch = 0  # how many times TIMEOUT has passed
        self.threads = threads
        self.errors = []
        self.failed = False
        self.actors = []
        self.jobs = []
        self.stacks = {}
        self.units = {}
        self.rows = {}
        self.number = 0
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(mock.patch("time.monotonic", self._clock))
        self._patch(transaction.Atomic, "__enter__", self._enter)
        self._patch(transaction.Atomic, "__exit__", self._exit)
        self._patch(Worker, "start", self._start_thread)
        # Whether threads may be refused; then none has been started yet.
        self.scarce = scarce
        self.to_refuse = self.refusals = 0
        self.refused_last = False
        if scarce or (threads, scarce) not in self.pools:
            self.pools[threads, scarce] = Pool(
                Settings(max_threads=threads, timeout=TIMEOUT, max_idle=3600.0, reset=None)
            )
        process._pool = self.pool = self.pools[threads, scarce]
        self.discarded = self.pool.stats().discarded
        for kind in kinds:
            self.arrive(kind)

    def _clock(self):
        return self.now

    def _patch(self, owner, name, replacement):
        original = getattr(owner, name)

        def patched(this, *args):
            return replacement(original, this, *args)

        self.patches.enter_context(mock.patch.object(owner, name, patched))

    def _start_thread(self, original, worker):
        self.refused_last = self.to_refuse > 0
        if self.refused_last:
            self.to_refuse -= 1
            self.refusals += 1
            raise RuntimeError("can't start new thread")
        original(worker)

    # What runs on the workers

    def _check(self, condition, message):
        if not condition:
            self.errors.append(message)

    def _start(self, job):
        with self.rest.changed:
            self._check(not job.started, f"{job} started twice")
            self._check(not job.over, f"{job} started after its caller gave it up")
            self._check(not job.doomed, f"{job} started in a block that has ended")
            for earlier in self.jobs:
                if earlier is job:
                    break
                self._check(
                    earlier.started
                    or earlier.over
                    or earlier.given_up
                    or "anywhere" in (earlier.kind, job.kind)
                    or job.line is None
                    or earlier.line is not job.line
                    or earlier.turn_of is not job.turn_of,
                    f"{job} overtook {earlier}",
                )
            for unit in job.around.chain() if job.around and job.kind != "anywhere" else ():
                unit.line = unit.line or job.line
            job.started = job.running = True
            running = sum(each.running for each in self.jobs)
            self._check(running <= self.threads, f"{running} calls run at one time")
        units = [] if job.kind == "anywhere" else atomics(job.around)
        seen = [self.units.get(each) for each in connection.atomic_blocks]
        self._check(seen == units, f"{job} is in {seen}, not in {units}")
        self._check(not any(unit.ended for unit in units), f"{job} is in a block that has ended")

    def _wait_at_gate(self, job):
        gate = job.gate
        if gate is not None and not self.failed:
            gate.acquire()
        with self.rest.changed:
            job.running = False

    def _work(self, job, number):
        self._start(job)
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO written VALUES ({number})")
        self.rows[number] = [] if job.kind == "anywhere" else atomics(job.around)
        self._wait_at_gate(job)
        return number

    def _enter(self, original, atomic_of_django):
        job = job_of_context.get()
        self._start(job)
        original(atomic_of_django)
        job.unit.atomic = atomic_of_django
        self.units[atomic_of_django] = job.unit
        self.stacks.setdefault(threading.current_thread(), []).append(job.unit)
        self._wait_at_gate(job)

    def _exit(self, original, atomic_of_django, error, *args):
        job = job_of_context.get()
        unit = self.units[atomic_of_django]
        if unit is not job.unit:
            self._check(self.epoch > job.epoch, f"{job} rolls back a block inside it at once")
        elif job.kind == "leave":
            self._start(job)
            # While COMMIT or ROLLBACK runs.
            self._wait_at_gate(job)
        stack = self.stacks[threading.current_thread()]
        self._check(stack[-1:] == [unit], f"{job} ends {unit}, and not the innermost block {stack}")
        original(atomic_of_django, error, *args)
        if unit in stack:
            stack.remove(unit)
        self._check(unit.ended is None, f"{job} ends a block twice")
        unit.ended = "committed" if error is None else "rolled back"

    # What runs on the loop

    def _submit(self, actor, kind, unit, gated=False):
        job = Job(actor, kind, unit, self.rest.lock() if gated else None, self.epoch)
        job.refusals = self.refusals
        job_of_context.set(job)
        self.jobs.append(job)
        return job

    def _finish(self, job, error):
        """See that *job*, which has ended, was allowed to end like that."""
        with self.rest.changed:
            job.over = True
        unit = job.unit
        undone = job.around and any(u.ended == "rolled back" for u in job.around.chain())
        match error:
            case None | Failure():
                self._check(not job.doomed, f"{job} ran in a block that has ended")
                without_call = job.kind in ("enter", "leave") and unit.kind == "pinned"
                rolled_back_before = error is not None and unit.ended == "rolled back"
                if not (without_call or rolled_back_before):
                    self._check(job.started, f"{job} has ended, and never started")
                if job.kind == "leave" and unit.kind == "atomic":
                    self._check(not job.cancelled, f"the cancellation of {job} is lost")
                    expected = "committed" if unit.commits else "rolled back"
                    self._check(unit.ended == expected, f"{job}: {unit.ended}, not {expected}")
                pass
            case LeaseClosed():
                self._check(job.doomed or undone, f"{job} was refused: {error}")
                self._check(not job.started, f"{job} was refused though it had started")
            case PoolTimeout() if "no thread could be started" in str(error):
                self._check(self.refusals > job.refusals, f"{job} could have had a thread")
                self._check(not job.started, f"{job} was refused though it had started")
                job.actor.root.refused = True
            case PoolTimeout():
                waited = self.epoch > job.epoch
                root = job.actor.root
                again = root.kind == "request" and (root.refused or self.epoch > root.epoch)
                allowed = waited or again or job.kind == "anywhere"
                self._check(allowed, f"{job} timed out at once: {error}")
                if job.kind == "leave":
                    self._check(unit.ended == "rolled back", f"{job} timed out and did not end")
                elif job.kind != "anywhere":
                    self._check(not job.started, f"{job} timed out though it had started")
            case asyncio.CancelledError():
                self._check(job.actor.cancelled, f"{job} was cancelled by nobody")
                # A beginning that takes too long is undone as it ends, when nobody waits any more.
                if job.kind == "enter" and unit.kind == "atomic" and self.epoch == job.epoch:
                    self._check(
                        (unit.ended == "rolled back") is (unit.atomic is not None),
                        f"{job} was cancelled and not undone",
                    )
                if job.kind == "leave" and unit.kind == "atomic":
                    self._check(unit.ended is not None, f"{job} was cancelled and did not end")
                    if unit.commits and self.epoch == job.epoch:
                        self._check(unit.ended == "committed", f"{job} was cancelled and undone")
            case _:
                self.errors.append(f"{job} raised {error!r}")

    async def _live(self, actor):
        """Do what *actor* is told, until it is to leave its block."""
        while True:
            actor.order = self.loop.create_future()
            try:
                order = await actor.order
            except asyncio.CancelledError:
                if actor.swallows:
                    continue
                raise
            finally:
                actor.order = None
            match order:
                case "leave":
                    return
                case "fail":
                    raise Failure
                case job_kind, function:
                    try:
                        await function(actor, job_kind)
                    except asyncio.CancelledError:
                        if not actor.swallows:
                            raise

    async def _call(self, actor, how):
        kind, gated = how
        job = self._submit(actor, kind, actor.unit, gated)
        self.number += 1
        wrapped = {
            "bridge": database_sync_to_async(self._work),
            "native": sync_to_async(self._work),
            "anywhere": database_sync_to_async(self._work, thread_sensitive=False),
        }[kind]
        error = None
        try:
            await wrapped(job, self.number)
        except BaseException as raised:
            error = raised
        self._finish(job, error)
        if isinstance(error, asyncio.CancelledError):
            raise error

    async def _block(self, actor, how):
        kind, gated, gated_at_the_end = how
        around = actor.unit
        unit = Unit(kind, around, line_of(around, actor.root))
        job = self._submit(actor, "enter", unit, gated)
        error = None
        try:
            async with atomic() if kind == "atomic" else pinned():
                self._finish(job, None)
                actor.unit = unit
                actor.depth += 1
                unit.commits = False
                try:
                    await self._live(actor)
                    unit.commits = True
                finally:
                    actor.unit = around
                    actor.depth -= 1
                    job = self._submit(actor, "leave", unit, gated_at_the_end)
                    unit.closing = True
        except BaseException as raised:
            error = raised
        self._finish(job, error)
        if isinstance(error, asyncio.CancelledError):
            raise error

    async def _spawn(self, actor, how):
        self._add(actor.root, actor.unit)

    async def _release(self, actor, how):
        await release()

    def _add(self, root, unit, context=None):
        actor = Actor(len(self.actors), root, unit)
        self.actors.append(actor)
        life = self._live(actor) if unit or context is None else self._visit(actor)
        actor.task = self.loop.create_task(life, context=context)

    async def _visit(self, actor):
        scope = {"plain": "lifespan", "request": "http", "socket": "websocket"}[actor.root.kind]

        async def application(scope, receive, send):
            try:
                await self._live(actor)
            finally:
                actor.root.ended = True

        scope = {"type": scope, "method": "GET", "path": "/"}
        await BridgeMiddleware(application)(scope, None, None)

    # Rules

    def idle(self):
        """Return the actors that wait for an order."""
        return [actor for actor in self.actors if actor.order and not actor.order.done()]

    def alive(self):
        return [actor for actor in self.actors if not actor.task.done()]

    def at_gates(self):
        return [job for job in self.jobs if job.running and job.gate is not None]

    def tell(self, actor, order):
        if actor is not None:
            actor.order.set_result(order)
            self.settle()

    # None has a precondition: which worker is faster may then not change what Hypothesis draws.
    # Where there is nothing to do, another rule is followed.

    @rule(kind=kinds_of_roots)
    def arrive(self, kind):
        if len(self.alive()) < MOST_ACTORS:
            self._add(Root(kind, self.epoch), None, contextvars.Context())
            self.settle()

    @rule(pick=picks, number=st.integers(1, 3))
    def spawn(self, pick, number):
        for _ in range(number):
            if len(self.alive()) < MOST_ACTORS:
                self.tell(self._pick(self.idle(), pick), (None, self._spawn))

    @rule(
        pick=picks,
        kinds=st.lists(
            st.sampled_from(["bridge", "native", "bridge", "native", "anywhere"]),
            min_size=1,
            max_size=3,
        ),
        gated=st.booleans(),
    )
    def call(self, pick, kinds, gated):
        for number, kind in enumerate(kinds):
            actor = self._pick(self.idle(), pick + number)
            if kind == "native" and actor and actor.root.kind == "plain" and actor.unit is None:
                kind = "bridge"  # asgiref's own thread is none of the pool
            self.tell(actor, ((kind, gated), self._call))

    @rule(
        pick=picks,
        kind=st.sampled_from(["atomic", "atomic", "pinned"]),
        gated=st.booleans(),
        gated_at_the_end=st.booleans(),
    )
    def enter(self, pick, kind, gated, gated_at_the_end):
        self.tell(self._pick(self.idle(), pick), ((kind, gated, gated_at_the_end), self._block))

    @rule(pick=picks, how=st.sampled_from(["leave", "leave", "fail"]))
    def leave(self, pick, how):
        if inside := [actor for actor in self.idle() if actor.depth]:
            self.tell(self._pick(inside, pick), how)
        else:
            self.enter(pick, "atomic", gated=False, gated_at_the_end=pick % 2 == 0)

    @rule(pick=picks)
    def depart(self, pick):
        outside = [actor for actor in self.idle() if not actor.depth]
        if len(outside) > 2:
            self.tell(self._pick(outside, pick), "leave")
        else:
            self.spawn(pick, 2)

    @rule(pick=picks)
    def open_gate(self, pick):
        if job := self._pick(self.at_gates(), pick):
            self._open(job)
            self.settle()
        else:
            self.call(pick, ["bridge"], gated=True)

    @rule(
        pick=picks,
        swallows=st.booleans(),
        times=st.integers(1, 2),
        gate=st.sampled_from(["none", "before", "after"]),
    )
    def cancel(self, pick, swallows, times, gate):
        """Cancel a task, once or twice; let a worker go on before it knows, or just after."""
        if not (actor := self._pick(self.alive(), pick)):
            return
        actor.swallows, actor.cancelled = swallows, True
        for _ in range(times):
            for job in self.jobs:
                if job.actor is actor:
                    job.cancelled = not job.over
                    self._give_up([job])
            actor.task.cancel()
            self._let_workers_rest()
            if gate == "after":
                self._turn()
            if gate != "none" and (job := self._pick(self.at_gates(), pick)):
                self._open(job)
                self._let_workers_rest()
        self.settle()

    @rule(pick=picks, number=st.integers(1, 3), gated=st.booleans())
    def refuse_threads(self, pick, number, gated):
        """Have the system refuse the next threads, and make a call that may want one."""
        if self.scarce:
            self.to_refuse = number
        self.call(pick, ["bridge"], gated)

    @rule(pick=picks)
    def release(self, pick):
        self.tell(self._pick(self.idle(), pick), (None, self._release))

    @rule()
    def time_out(self):
        if all(job.started or job.over for job in self.jobs):
            self.enter(0, "pinned", gated=False, gated_at_the_end=False)
            return
        self._give_up(self.jobs)
        self.epoch += 1
        self.now += TIMEOUT + 1
        self.settle()
        for job in self.jobs:
            if job.given_up and not (job.started or job.over):
                # An end is not refused; it waits for what runs.
                busy = any(each.running for each in self.jobs if each.line is job.line)
                assert (job.kind, busy) == ("leave", True), f"{job} waits on after its time"

    @staticmethod
    def _pick(choices, pick):
        return choices[pick % len(choices)] if choices else None

    def _give_up(self, jobs):
        with self.rest.changed:
            for job in jobs:
                job.given_up = not (job.started or job.over)

    def _open(self, job):
        gate, job.gate = job.gate, None
        with self.rest.changed:
            job.running = False
        gate.release()

    # Rest, and what must hold then

    def settle(self):
        """Let everything come to rest, and see that all is as it should be."""
        try:
            self._come_to_rest()
            # Outcomes may be held to gather, for a moment. Not for longer: who waits for the end of
            # a block that was given up looks again and again.
            moment = self.now + 1
            while moment > (rings := min((t.when() for t in self.loop._scheduled), default=moment)):
                self.now = max(self.now, rings) + 0.001
                self._come_to_rest()
            self._see()
        except BaseException:
            self.failed = True
            raise

    def _see(self):
        assert not self.errors, self.errors
        stats = self.pool.stats()
        assert stats.threads <= self.threads
        if stats.waiting:
            enough = stats.threads == self.threads or (self.refused_last and stats.threads > 0)
            assert (stats.idle, enough) == (0, True), stats
        waiting = None
        for job in self.jobs:
            if job.line is None and job.actor.root.kind == "plain" and not job.over:
                assert not (job.started and waiting), f"{job} overtook {waiting}"
                waiting = waiting or (None if job.started else job)

    def _come_to_rest(self):
        ready = True
        while ready:
            self._turn()
            self._let_workers_rest()
            ready = bool(self.loop._ready)

    def _turn(self):
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def _let_workers_rest(self):
        with self.rest.changed:
            while not self.pool._workers <= self.rest.waiting:
                if not self.rest.changed.wait(PATIENCE):
                    raise AssertionError("a worker does not come to rest")

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        whole = False
        try:
            if not self.failed:
                self._end_all()
                whole = True
                if self.scarce:
                    self.pools.pop((self.threads, True)).close(refuse=True)
        finally:
            if not whole:
                self._abandon()
            for actor in self.actors:
                actor.task._log_destroy_pending = False
            self.patches.close()
            process._pool = None
            self.loop.close()

    def _abandon(self):
        """End the threads of a pool that is good for no other example."""
        self.failed = True
        # Were its coroutines freed, they would run on in the next example.
        self.abandoned.append(self.actors)
        del self.pools[self.threads, self.scarce]
        for job in self.at_gates():
            self._open(job)
        ending = threading.Thread(target=self.pool.close, kwargs={"refuse": True}, daemon=True)
        ending.start()
        ending.join(5)

    def _end_all(self):
        """Have every task end, and see that the pool is whole and the database right."""
        self.settle()
        while self.at_gates() or self.idle():
            for job in self.at_gates():
                self._open(job)
            for actor in self.idle():
                actor.order.set_result("leave")
            self.settle()
        stuck = [job for job in self.jobs if not job.over]
        assert not self.alive(), f"never ended: {stuck}"
        stats = self.pool.stats()
        assert (stats.holders, stats.waiting) == ((), 0)
        assert stats.idle == stats.threads
        assert stats.discarded == self.discarded
        assert not any(self.stacks.values())
        expected = [
            number
            for number, units in self.rows.items()
            if all(unit.ended == "committed" for unit in units)
        ]
        assert self._read() == sorted(expected)

    def _read(self):
        """Return what was written, and is there, on all workers; and remove it."""

        def read(gate):
            with connection.cursor() as cursor:
                cursor.execute("SELECT number FROM written")
                found.extend(number for (number,) in cursor.fetchall())
                cursor.execute("DELETE FROM written")
            gate.acquire()

        found = []
        # One for each reader: a lock tells of one who waits for it.
        gates = [self.rest.lock() for _ in range(self.pool.stats().threads)]
        readers = [self.loop.create_task(database_sync_to_async(read)(gate)) for gate in gates]
        self._come_to_rest()
        for gate in gates:
            gate.release()
        while not all(reader.done() for reader in readers):
            self._come_to_rest()
        for reader in readers:
            reader.result()
        return sorted(found)


def make_table(connection, **kwargs):
    """Give each connection a table of its own, in which all of them write without waiting."""
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE written (number integer)")


@pytest.fixture
def machine(monkeypatch, connection_settings):
    """Return the machine, with locks that tell who waits for them."""
    rest = Rest()

    def watch(owner, name):
        original = owner.__init__

        def init(self, *args, **kwargs):
            original(self, *args, **kwargs)
            setattr(self, name, rest.lock())

        monkeypatch.setattr(owner, "__init__", init)

    watch(Worker, "wake")
    watch(Lease, "_wake")
    connection_settings(CONN_MAX_AGE=None)
    if CHOICE == "sqlite":
        options = connections.settings["default"]["OPTIONS"]
        connection_settings(OPTIONS={**options, "transaction_mode": "DEFERRED"})
    pools = {}
    connection_created.connect(make_table)
    yield type("Machine", (Machine,), {"pools": pools, "rest": rest, "abandoned": []})
    connection_created.disconnect(make_table)
    for pool in pools.values():
        pool.close(refuse=True)


@pytest.mark.django_db(transaction=True)
def test_leases_and_blocks(machine):
    """Whatever happens in whatever order, calls, blocks and workers stay in order."""
    # Thousands of examples take longer than a test may, and each wait has a limit of its own.
    faulthandler.cancel_dump_traceback_later()
    run_state_machine_as_test(machine, settings=settings.get_profile("ormbridge"))
