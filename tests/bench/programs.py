"""The programs that the benchmark runs: they answer line by line, within a bound, or are ended.

At the end of its block a program is ended, too, and not asked to: one that closes what it has open
may hang in that, and nobody needs it.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]


class DidNotFinishError(Exception):
    """A program gave no answer. It says why, and is over."""


class Program:
    """A Python program that runs until the block ends.

    What it writes to standard error is shown then.
    """

    def __init__(self, *arguments, **environment):
        self.errors = tempfile.TemporaryFile("a+")  # noqa: SIM115 - closed with the block
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **environment},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.process.kill()
        self.process.communicate()
        print(self.said(), end="", file=sys.stderr)
        self.errors.close()

    def said(self):
        """Return what it has written to standard error."""
        self.errors.seek(0)
        return self.errors.read()

    def answer(self, bound):
        """Return the next line that it prints.

        :raises DidNotFinishError: if it prints none within *bound* seconds, or ends.
        """
        began = time.monotonic()
        late = threading.Timer(bound, self.process.kill)
        late.start()
        line = self.process.stdout.readline()
        late.cancel()
        if line.endswith("\n"):
            return line.strip()
        if time.monotonic() - began >= bound:
            reason = f"no answer in {bound:g} s"
        else:
            reason = f"it ended with status {self.process.wait()}"
        last = self.said().split("\n")[-2:-1]
        raise DidNotFinishError(": ".join([reason, *last]))

    def ask(self, *words, bound):
        """Write a line of *words* to it, and return the line that it prints then."""
        with contextlib.suppress(OSError):  # it has ended: the answer says so
            print(*words, file=self.process.stdin, flush=True)
        return self.answer(bound)
