"""Few hands first: how many workers may run while leases wait (a part of step 3 of a call).

Threads that run Python share one lock, and many that fight over it get less done than few. So FEW
run to begin with, and more as long as the process leaves a processor idle, or none is done for
STALL seconds. A worker that a lease keeps between calls is no hand: nobody knows when it runs.

Assumes that the pool's lock is held.
"""

from __future__ import annotations

import time

from .mailbox import LOOK

#: Workers that begin at one time.
FEW = 3
#: Seconds after which all may run where no worker is done with its lease.
STALL = 0.005
# Of one processor, what the process uses: below the first, one worker more may run, above the
# second one fewer.
SLACK, BUSY = 0.75, 0.9
# The weight of the last look in what the process uses.
FRESH = 0.2


class Hands:
    """How many workers of one pool may run."""

    def __init__(self) -> None:
        #: So many.
        self.count = FEW
        #: When a worker last was done with a lease, or with the first call of one that keeps it.
        self.moved = 0.0
        self._looked = self._used = 0.0  # the last look, and the seconds of CPU used by then
        self._busy = 1.0  # how much of a processor that was lately

    def begin(self, now: float) -> None:
        """Measure from *now* on, because somebody begins to wait."""
        self._looked, self._used, self.moved = now, time.process_time(), now

    def look(self, most: int) -> None:
        """Let more workers run where the interpreter is idle, and fewer where it is not.

        :param most: how many there may be.
        """
        now, used = time.monotonic(), time.process_time()
        passed = now - self._looked
        if passed <= LOOK / 2:  # other loops look, too
            return
        busy = (used - self._used) / passed
        self._busy += FRESH * (busy - self._busy)
        stands = self.moved <= self._looked  # nobody was done since
        if now - self.moved > STALL or (stands and busy < SLACK):
            self.count = most
        elif self._busy < SLACK:
            self.count = min(self.count + 1, most)
        elif self._busy > BUSY and self.count > FEW:
            self.count -= 1
        self._looked, self._used = now, used
