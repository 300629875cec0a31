"""What the stateful test runs on the workers, and sees there."""

import asyncio
import contextvars

from django.db import connections, transaction

from ormbridge.core.worker import current
from tests.core.gate import apart
from tests.support.model import ALIASES, Frame, Hook, atomics

job_of_context = contextvars.ContextVar("job_of_context")


class OnWorkers:
    """The half of the machine that runs on the workers."""

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
            job.thread = current()
            # A call in a synchronous frame runs on the thread of the call that waits there.
            running = len({each.thread for each in self.jobs if each.running})
            self._check(running <= self.threads, f"{running} calls run at one time")
            if isinstance(job.line, Frame):
                self._check(job.thread is job.line.thread, f"{job} left its synchronous frame")
        for using in ALIASES:
            units = [] if job.kind == "anywhere" else atomics(job.around, using)
            seen = [self.units.get(each) for each in connections[using].atomic_blocks]
            self._check(seen == units, f"{job} is in {seen}, not in {units}")
            ended = any(unit.ended for unit in units)
            self._check(not ended, f"{job} is in a block that has ended")

    def _wait_at_gate(self, job):
        gate = job.gate
        if gate is not None and not self.failed:
            apart(gate.acquire)  # a green function does not hold the loop there
        with self.rest.changed:
            job.running = False

    def _work(self, job, number, using, hooks):
        self._start(job)
        units = [] if job.kind == "anywhere" else atomics(job.around, using)
        broken = (current(), using) in self.broken
        try:
            with connections[using].cursor() as cursor:
                cursor.execute(f"INSERT INTO written VALUES ({number})")
            self._check(not broken, f"{job} wrote to a transaction that is lost")
            self.rows[number] = using, units
        except transaction.TransactionManagementError as error:
            self._check(broken, f"{job}: {error}")
        for kind in hooks:
            self._hook(kind, using, units)
        self._wait_at_gate(job)
        return number

    def _hook(self, kind, using, units):
        # Outside of a transaction it is called at once, and what it returns is dropped.
        hook = Hook(kind if units else "function", using, units)

        def function():
            self._check(not connections[using].in_atomic_block, "on_commit() before the commit")
            self.ran.append(hook)

        async def coroutine_function():
            self._check(asyncio.get_running_loop() is self.loop, "on_commit() on another loop")
            self.ran.append(hook)

        self.hooks.append(hook)
        transaction.on_commit(
            function if hook.kind == "function" else coroutine_function, using=using
        )

    def _enter(self, original, atomic_of_django):
        job = job_of_context.get()
        self._start(job)
        unit = job.unit
        try:
            original(atomic_of_django)
        except RuntimeError:
            self._check(unit.durable and unit.nested, f"{job} was refused")
            job.running = False
            raise
        self._check(not (unit.durable and unit.nested), f"{job} is durable, and in another block")
        me = current()
        unit.undoes = not unit.nested or (unit.savepoint and (me, unit.using) not in self.broken)
        unit.atomic = atomic_of_django
        self.units[atomic_of_django] = unit
        self.stacks.setdefault(me, []).append(unit)
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
        place = current(), unit.using
        stack = self.stacks[place[0]]
        self._check(stack[-1:] == [unit], f"{job} ends {unit}, and not the innermost block {stack}")
        unit.lost = place in self.broken
        self._check(error or not unit.lost, f"{job} commits what is lost")
        original(atomic_of_django, error, *args)
        if unit in stack:
            stack.remove(unit)
        self._check(unit.ended is None, f"{job} ends a block twice")
        unit.ended = "committed" if error is None else "rolled back"
        self.broken.discard(place)
        if error is not None and not unit.undoes:
            self.broken.add(place)
