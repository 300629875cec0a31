"""Runs programs without a start of Python for each: a process that has Django loaded forks.

Python, Django and pytest take far longer to start than most programs take to run. The process that
:class:`Starter` starts has loaded them once, and forks for each program. To the program the fork is
what a fresh Python is: a ``__main__`` of its own, its folder first on ``sys.path``, no settings, no
application loaded, no thread. What it does to itself ends with it.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

#: What a program loads in any case by the time that Django is set up, or that pytest begins. None
#: of it needs settings, and none is a plugin of pytest, which wants to load those itself.
LOADED = (
    *("asyncio", "concurrent.futures.thread", "pytest", "django.contrib.admin.sites"),
    *("django.contrib.auth.hashers", "django.contrib.messages", "django.contrib.sessions"),
    *("django.contrib.staticfiles.checks", "django.core.asgi", "django.core.checks"),
    *("django.core.management.commands.check", "django.core.management.commands.migrate"),
    *("django.db.backends.sqlite3.base", "django.test", "django.urls"),
)


class Starter:
    """The process; what it runs has the variables of *environment*, and its own."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._output = TemporaryDirectory()
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(
        self, directory: Path, *arguments: str, timeout: float, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run Python in *directory* with *arguments*: ``-c`` and code, ``-m``, or a file.

        After *timeout* seconds it is killed, which its return code says.
        """
        outputs = [Path(self._output.name, name) for name in ("stdout", "stderr")]
        asked = {
            "directory": str(directory),
            "arguments": arguments,
            "environment": {**self._environment, **variables},
            "outputs": [str(each) for each in outputs],
            "timeout": timeout,
        }
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        printed = (each.read_text(encoding="utf-8") for each in outputs)
        return subprocess.CompletedProcess(arguments, code, *printed)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._output.cleanup()


def serve() -> dict[str, Any]:
    """Fork for each program that is asked for, and tell how it ended; return in the fork."""
    # Else each fork would copy all that it has in common with this process, only to count it.
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()
    sys.exit()


def become(
    directory: str,
    arguments: list[str],
    environment: dict[str, str],
    outputs: list[str],
    timeout: float,
) -> None:
    """Be as Python is when it starts, and do what it then does."""
    signal.setitimer(signal.ITIMER_REAL, timeout)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.path.insert(0, directory)
    first, *rest = arguments
    sys.argv = [first, *rest]
    main = sys.modules["__main__"] = ModuleType("__main__")
    if first == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = [first, *rest[1:]]
        exec(rest[0], vars(main))
    else:
        main.__file__ = str(Path(directory, first))
        exec(compile(Path(first).read_bytes(), first, "exec"), vars(main))


if __name__ == "__main__":
    for each in LOADED:
        importlib.import_module(each)
    become(**serve())
