"""The machine of the stateful test: tasks, on a pool, that do what Hypothesis has them do."""

import asyncio
import contextlib
import contextvars
import threading
import time
from unittest import mock

from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import User
from django.db import connections, transaction
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from ormbridge import (
    BridgeMiddleware,
    LeaseClosed,
    PoolTimeout,
    TransactionAborted,
    atomic,
    database_sync_to_async,
    pinned,
    release,
    stream,
)
from ormbridge.core import hooks, process
from ormbridge.core.hands import STALL
from ormbridge.core.mailbox import LOOK
from ormbridge.core.pool import Pool
from ormbridge.core.settings import Settings
from ormbridge.core.worker import Worker, current
from tests.core.gate import GUARD, apart
from tests.support.model import (
    ALIASES,
    Actor,
    Frame,
    Job,
    Loop,
    Rest,
    Root,
    Unit,
    line_of,
)
from tests.support.on_workers import OnWorkers, job_of_context

MONOTONIC = time.monotonic
TIMEOUT = 100.0
"""Seconds of the test's own clock."""
PATIENCE = GUARD
MOST_ACTORS = 7
ROWS = "SELECT 1 AS id UNION ALL SELECT 2 UNION ALL SELECT 3"


class Failure(Exception):  # noqa: N818 - it is what a block is to fail with
    """Raised in a block, which is then rolled back."""


class Machine(OnWorkers, RuleBasedStateMachine):
    """Tasks, on a pool, that make calls and open blocks."""

    picks = st.integers(0, 59)
    aliases = st.sampled_from(["default", "default", "other"])
    kinds_of_roots = st.sampled_from(["plain", "request", "socket"])
    pools: dict  # by their bound, for the next example: starting threads takes time
    rest: Rest
    abandoned: list
    #: Whether functions run on the loop's thread, and how many wait there for the server.
    green: bool
    asked: list

    @initialize(
        threads=st.integers(1, 3),
        scarce=st.booleans(),
        kinds=st.lists(kinds_of_roots, max_size=2),
    )
    def begin(self, threads, scarce, kinds):
        self.loop = Loop()
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
        self.broken = set()  # thread and alias of transactions that can only be rolled back
        self.hooks = []
        self.ran = []
        self.number = 0
        self.patches = contextlib.ExitStack()
        self.patches.enter_context(mock.patch("time.monotonic", self._clock))
        self._patch(transaction.Atomic, "__enter__", self._enter)
        self._patch(transaction.Atomic, "__exit__", self._exit)
        self._patch(Worker, "start", self._start_thread)
        # Whether threads may be refused; then none has been started yet.
        self.scarce = scarce = scarce and not self.green
        self.to_refuse = self.refusals = 0
        self.refused_last = False
        if scarce or (threads, scarce) not in self.pools:
            settings = Settings(
                max_threads=threads, timeout=TIMEOUT, max_idle=3600.0, reset=None, green=self.green
            )
            hooks.load(settings)
            self.pools[threads, scarce] = Pool(settings)
        process._pool = self.pool = self.pools[threads, scarce]
        self.discarded = self.pool.stats().discarded
        for kind in kinds:
            self.arrive(kind)

    def _clock(self):
        # A server is waited for in its own time: after a jump, what is only slow would be cut off.
        return MONOTONIC() if threading.current_thread().name == "ormbridge-canceller" else self.now

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
                rolled_back_before = job.kind == "leave" and error and unit.ended == "rolled back"
                if not (without_call or rolled_back_before):
                    self._check(job.started, f"{job} has ended, and never started")
                if job.kind == "leave" and unit.kind == "atomic":
                    self._check(not job.cancelled, f"the cancellation of {job} is lost")
                    expected = "committed" if unit.commits else "rolled back"
                    self._check(unit.ended == expected, f"{job}: {unit.ended}, not {expected}")
            case TransactionAborted():
                ends = job.kind == "leave" and unit.commits
                self._check(ends and unit.lost, f"{job} was not lost: {error}")
            case RuntimeError() if job.kind == "enter" and unit.durable and unit.nested:
                self._check(unit.atomic is None, f"{job} was refused though it had begun")
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
                    if unit.commits and self.epoch == job.epoch and not unit.lost:
                        self._check(unit.ended == "committed", f"{job} was cancelled and undone")
            case _:
                self.errors.append(f"{job} raised {error!r}")
        if job.kind == "leave":
            self._see_hooks(unit)

    def _see_hooks(self, unit):
        """See that on_commit() did what it was to do in *unit*, if that was a transaction."""
        hooks = [hook for hook in self.hooks if hook.units[:1] == [unit]]
        due = [hook for hook in hooks if hook.is_due()]
        # Coroutine functions are awaited after all functions were called, on the loop.
        expected = sorted(due, key=lambda hook: hook.kind == "coroutine")
        ran = [hook for hook in self.ran if hook in hooks]
        self._check(ran == expected, f"on_commit() ran {ran}, not {expected}")

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
                case "leave" | "break":
                    return order
                case "fail":
                    raise Failure
                case job_kind, function:
                    try:
                        await function(actor, job_kind)
                    except asyncio.CancelledError:
                        if not actor.swallows:
                            raise

    async def _call(self, actor, how):
        kind, gated, using, hooks = how
        job = self._submit(actor, kind, actor.unit, gated)
        self.number += 1
        wrapped = {
            "bridge": database_sync_to_async(self._work, green=self.number % 3 > 0),
            "native": sync_to_async(self._work),
            "anywhere": database_sync_to_async(self._work, thread_sensitive=False),
        }[kind]
        error = None
        try:
            await wrapped(job, self.number, using, hooks)
        except BaseException as raised:
            error = raised
        self._finish(job, error)
        if isinstance(error, asyncio.CancelledError):
            raise error

    async def _block(self, actor, how):
        kind, gated, gated_at_the_end, options = how
        around = actor.unit
        unit = Unit(kind, around, line_of(around, actor), *options)
        job = self._submit(actor, "enter", unit, gated)
        error = None
        try:
            async with atomic(*options) if kind == "atomic" else pinned():
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

    async def _frame(self, actor, how):
        job = self._submit(actor, "frame", actor.unit)
        around = actor.frame
        frame = Frame()

        async def inside():
            actor.frame = frame
            actor.depth += 1
            try:
                await self._live(actor)
            finally:
                actor.depth -= 1
                actor.frame = around
                job_of_context.set(job)

        def view():
            self._start(job)
            frame.thread = current()
            try:
                async_to_sync(inside)()
            finally:
                job.running = False

        error = None
        try:
            await database_sync_to_async(view)()
        except BaseException as raised:
            error = raised
        self._finish(job, error)
        if isinstance(error, asyncio.CancelledError):
            raise error

    async def _stream(self, actor, using):
        """Read rows one by one, as told, and leave early or not."""
        unit, stream_around = actor.unit, actor.stream
        epoch, refusals = self.epoch, self.refusals
        rows = aiter(stream(User.objects.using(using).raw(ROWS), chunk_size=1))
        if unit is None and actor.frame is None and actor.root.kind == "plain":
            actor.stream = stream_around or object()
        actor.depth += 1
        actor.streams += 1
        seen = []
        error = None
        try:
            while True:
                ended = any(each.closing for each in unit.chain()) if unit else False
                seen.append((await anext(rows)).pk)
                self._check(not ended, f"a row was read after the end of {unit}")
                if await self._live(actor) == "break":
                    break
        except StopAsyncIteration:
            self._check(seen == [1, 2, 3], f"a stream ended after {seen}")
        except BaseException as raised:
            error = raised
        del rows
        actor.depth -= 1
        actor.streams -= 1
        actor.stream = stream_around
        self._check(seen == [1, 2, 3][: len(seen)], f"a stream had {seen}")
        match error:
            case None | Failure():
                pass
            case LeaseClosed():
                ended = unit and any(each.closing or each.ended for each in unit.chain())
                self._check(ended or actor.root.ended, f"a stream was refused: {error}")
            case PoolTimeout():
                again = actor.root.kind == "request" and actor.root.refused
                again = again or self.epoch > min(epoch, actor.root.epoch)
                again = again or self.refusals > refusals
                self._check(again, f"a stream timed out at once: {error}")
                if "no thread could be started" in str(error):
                    actor.root.refused = True
            case transaction.TransactionManagementError():
                lost = any(each[1] == using for each in self.broken)
                self._check(lost, f"a stream was in no transaction that is lost: {error}")
            case asyncio.CancelledError():
                self._check(actor.cancelled, "a stream was cancelled by nobody")
                raise error
            case _:
                self.errors.append(f"a stream raised {error!r}")

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
            if actor.streams and actor.root.ended and not isinstance(order, str):
                # Its stream keeps a worker that is no longer the request's: a call might wait for
                # another one in vain.
                order = "break"
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
            # A task that outlives a frame or a stream has lines of its own, which no model knows.
            outside = [a for a in self.idle() if not (a.frame or a.streams)]
            if len(self.alive()) < MOST_ACTORS:
                self.tell(self._pick(outside, pick), (None, self._spawn))

    @rule(
        pick=picks,
        kinds=st.lists(
            st.sampled_from(["bridge", "native", "bridge", "native", "anywhere"]),
            min_size=1,
            max_size=3,
        ),
        gated=st.booleans(),
        using=aliases,
        hooks=st.lists(st.sampled_from(["function", "coroutine"]), max_size=3),
    )
    def call(self, pick, kinds, gated, using="default", hooks=()):
        for number, kind in enumerate(kinds):
            actor = self._choose(pick + 2 * number)
            if kind == "native" and actor and actor.root.kind == "plain" and actor.unit is None:
                kind = "bridge"  # asgiref's own thread is none of the pool
            if kind == "native" and actor and actor.frame and actor.is_late():
                kind = "bridge"  # asgiref's own frame knows of no block, until one is opened there
            if kind == "anywhere" and actor and (actor.frame or actor.streams):
                kind = "bridge"  # which of both it has to be, depends on who is free
            self.tell(actor, ((kind, gated, using, hooks), self._call))

    @rule(
        pick=picks,
        kind=st.sampled_from(["atomic", "atomic", "pinned"]),
        gated=st.booleans(),
        gated_at_the_end=st.booleans(),
        using=aliases,
        savepoint=st.sampled_from([True, True, False]),
        durable=st.sampled_from([False, False, False, True]),
    )
    def enter(
        self, pick, kind, gated, gated_at_the_end, using="default", savepoint=True, durable=False
    ):
        how = kind, gated, gated_at_the_end, (using, savepoint, durable)
        self.tell(self._choose(pick), (how, self._block))

    @rule(pick=picks)
    def spoil(self, pick):
        """Fail in a block without a savepoint, and so lose the one around it."""
        inside = [a for a in self.idle() if a.depth and a.unit and a.unit.kind == "atomic"]
        if (actor := self._pick(inside, pick)) is None:
            self.enter(pick, "atomic", gated=False, gated_at_the_end=False)
            return
        unit = actor.unit
        how = "atomic", False, False, (unit.using, False, False)
        self.tell(actor, (how, self._block))
        if actor in self.idle() and actor.unit is not unit:
            self.tell(actor, "fail")

    @rule(pick=picks)
    def enter_frame(self, pick):
        """Call a synchronous function that calls async_to_sync()."""
        self.tell(self._choose(pick), (None, self._frame))

    @rule(pick=picks, using=aliases)
    def read(self, pick, using):
        """Begin to read a stream; to leave is to read its next row, and in the end to leave it."""
        actor = self._choose(pick)
        if actor and actor.unit is None and actor.frame is None and not actor.has_one_line():
            self.enter(pick, "pinned", gated=False, gated_at_the_end=False)
        else:
            self.tell(actor, (using, self._stream))

    @rule(pick=picks, how=st.sampled_from(["leave", "leave", "break", "fail"]))
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
        # What async_to_sync makes of a cancellation is asgiref's affair.
        framed = {job.actor for job in self.jobs if job.kind == "frame" and not job.over}
        if not (actor := self._pick([a for a in self.alive() if a not in framed], pick)):
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
        outside = [actor for actor in self.idle() if not (actor.frame or actor.streams)]
        self.tell(self._pick(outside, pick), (None, self._release))

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

    def _choose(self, pick):
        """Return one that waits for an order, half of the times one that is in something."""
        idle = self.idle()
        inside = [actor for actor in idle if actor.depth]
        return self._pick(inside if pick % 2 and inside else idle, pick // 2)

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
            # A loop looks at its pool as long as somebody waits there, and so for ever where all
            # workers are held: only until all may run. The steps of an example take less than
            # TIMEOUT together.
            moment = self.now + 4 * (STALL + LOOK)
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
            ready = bool(self.loop._ready or self.asked)

    def _turn(self):
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def _let_workers_rest(self):
        with self.rest.changed:
            # Where all that it did was green, a worker has no thread.
            while not {each for each in self.pool.workers if each.ident} <= self.rest.waiting:
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
                    process.end(self.pools.pop((self.threads, True)))
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
        for _ in range(100):  # synchronous frames end with their coroutines
            for job in self.at_gates():
                self._open(job)
            for actor in self.idle():
                actor.order.set_result("break")
            self._turn()
            threading.Event().wait(0.001)
        ending = threading.Thread(target=process.end, args=(self.pool,), daemon=True)
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
        for unit in self.units.values():
            self._see_hooks(unit)
        assert not self.errors, self.errors
        expected = [
            (using, number)
            for number, (using, units) in self.rows.items()
            if all(unit.ended == "committed" for unit in units)
        ]
        assert self._read() == sorted(expected)

    def _read(self):
        """Return what was written, and is there, on all workers; and remove it."""

        def read(gate):
            for using in ALIASES:
                with connections[using].cursor() as cursor:
                    cursor.execute("SELECT number FROM written")
                    found.extend((using, number) for (number,) in cursor.fetchall())
                    cursor.execute("DELETE FROM written")
            apart(gate.acquire)

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
