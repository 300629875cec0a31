"""How many workers run at one time while the line is long (a part of step 3 of a call).

Threads that run Python share the interpreter's lock. Where calls are short, ten threads that fight
over it get less done than four, and by how much depends on the machine, its load and the latency of
the database. So the crew is found by trying: for WINDOW calls it is a little smaller or larger, and
stays so if a smaller crew was no slower or a larger one was faster. After a trial in vain the next
one waits, twice as long each time.

Guarantees: the crew counts only while at least as many calls wait as there may be workers, so a
call that could be served at once always is; and when no call has finished for a moment, all workers
run again.
"""

from __future__ import annotations

#: Calls that a trial takes.
WINDOW = 128
# Windows between two trials, at the most.
_MOST_PATIENT = 32
# What a smaller and a larger crew must reach of the speed before. Less is noise.
_NO_SLOWER, _FASTER = 0.98, 1.02
# What ends a trial before its time.
_HOPELESS = 0.8


class Crew:
    """The number of workers that run while the line is long. Guarded by the pool's lock."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._patience = 1
        self.all_hands()

    def all_hands(self) -> None:
        """Let every worker run, and measure anew."""
        #: How many may run now, and how many if the trial under way fails.
        self.size = self._kept = self._most
        self._grow = False
        self._wait = self._patience
        self._done = 0

    def call_done(self, now: float, long_line: bool) -> None:
        """Count a call that finished *now*, which is ``time.monotonic()``."""
        self._done += 1
        if not long_line:
            self._done = 0  # nothing to learn from calls that had to wait for their callers
        if self._done <= 1:
            self._since = now
            self.size = self._kept
        elif self._done > WINDOW or self._is_hopeless(now):
            self._judge((self._done - 1) / (now - self._since))
            self._since = now
            self._done = 1

    def _is_hopeless(self, now: float) -> bool:
        """Say, after a quarter of a trial, whether the rest of it would only cost time."""
        if self.size == self._kept or self._done != WINDOW // 4:
            return False
        return self._done / (now - self._since) < self._speed * _HOPELESS

    def _judge(self, speed: float) -> None:
        if self.size == self._kept:
            self._speed = speed
            self._wait -= 1
        elif speed > self._speed * (_FASTER if self.size > self._kept else _NO_SLOWER):
            self._kept, self._speed = self.size, speed
            self._wait = 0
            self._patience = 1
        else:
            self._grow = not self._grow
            self._patience = self._wait = min(self._patience * 2, _MOST_PATIENT)
        self.size = self._kept if self._wait > 0 else self._next_size()

    def _next_size(self) -> int:
        if self._kept in (1, self._most):
            self._grow = self._kept == 1
        step = max(1, self._kept // 2)
        return max(1, min(self._kept + (step if self._grow else -step), self._most))
