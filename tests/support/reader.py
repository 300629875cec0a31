"""Somebody who does what the page ``start`` says, with its files and commands, in order."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from docs._ext.record import markers
from examples.deployment.stack.ports import free_port
from tests.core.gate import PROCESS_GUARD
from tests.support.examples import example_source

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
# A block of the page: what follows its fence, its body, and the words before it.
BLOCK = re.compile(
    r"^```(\{example\} (?P<name>\S+)|console|ini)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)


class Reader:
    """Somebody who does what the page says, in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.processes: list[subprocess.Popen[str]] = []
        programs = folder.parent / "bin"
        programs.mkdir()
        (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "python3").chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DJANGO_", "PYTEST_"))}
        self.environment = {
            **kept,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
            # All is installed: pip finds it so, and asks nobody.
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            # The port of the page may be taken on this machine.
            "UVICORN_PORT": str(self.port),
        }

    def here(self, text: str) -> str:
        """Return *text* with the port of this run in the place of the page's."""
        return text.replace(":8000", f":{self.port}")

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        (self.folder / name).write_text(self.here(text), encoding="utf-8")

    def run(self, command: str) -> str:
        """Run a line of a terminal, and return what it printed."""
        if command.startswith("cd "):
            self.folder /= command.removeprefix("cd ")
            return ""
        process = subprocess.Popen(
            self.here(command),
            shell=True,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,  # the shell and what it starts end together
        )
        self.processes.append(process)
        if " uvicorn mysite" in command:
            assert process.stdout is not None
            for line in process.stdout:
                if "Uvicorn running" in line:
                    return ""
            raise AssertionError(f"{command} has ended")
        output, _ = process.communicate(timeout=PROCESS_GUARD)
        assert process.returncode == 0, output
        return output


@contextmanager
def reading(folder: Path) -> Iterator[Reader]:
    """Return a reader whose servers, and what hangs, are stopped in the end."""
    folder.mkdir()
    reader = Reader(folder)
    try:
        yield reader
    finally:
        for process in reader.processes:
            if process.poll() is None:
                os.killpg(process.pid, 15)
                process.communicate(timeout=PROCESS_GUARD)


def steps() -> Iterator[tuple[str, str, str]]:
    """Yield the blocks of the page: what to do, with what name, and what with."""
    for block in BLOCK.finditer(PAGE):
        body, before = block["body"], PAGE[: block.start()].rstrip()
        if block[1] != "console":
            (file,) = re.findall(r"`([\w./]+)`:$", before)
            text = markers.excerpt(example_source(name)).text if (name := block["name"]) else body
            yield name or "", file, text
        else:
            for command, printed in COMMAND.findall(body):
                yield "$", command, printed
