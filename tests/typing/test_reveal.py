"""mypy and pyright read ``reveal.py`` and must find there what its comments say."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ormbridge

SOURCE = Path(__file__).with_name("reveal.py")
PACKAGE = Path(ormbridge.__file__).parents[1]

# The types that were revealed and the lines with errors, by line of the source.
Findings = tuple[dict[int, str], set[int]]


def stated() -> Findings:
    """Return what the comments of the source say."""
    revealed, refused = {}, set()
    for number, line in enumerate(SOURCE.read_text(encoding="utf-8").splitlines(), start=1):
        if "  # reveals: " in line:
            revealed[number] = line.partition("  # reveals: ")[2]
        elif line.endswith("  # refused"):
            refused.add(number)
    return revealed, refused


def found_by_mypy(project: Path) -> Findings:
    """Return what ``mypy --strict`` finds in the source, as a user's project would see it."""
    output = answer(project, "mypy", "--strict", "--output=json", SOURCE.name)
    revealed, refused = {}, set()
    for message in map(json.loads, output.splitlines()):
        if message["file"] != SOURCE.name:
            continue
        if message["severity"] == "error":
            refused.add(message["line"])
        elif match := re.fullmatch(r'Revealed type is "(.*)"', message["message"]):
            revealed[message["line"]] = plain(match[1])
    return revealed, refused


def found_by_pyright(project: Path) -> Findings:
    """Return what pyright finds in the source, as a user's project would see it."""
    configuration = {"include": [SOURCE.name], "extraPaths": [str(PACKAGE)]}
    (project / "pyrightconfig.json").write_text(json.dumps(configuration), encoding="utf-8")
    output = answer(project, "pyright", "--outputjson", "--pythonpath", sys.executable)
    revealed, refused = {}, set()
    for message in json.loads(output)["generalDiagnostics"]:
        line = message["range"]["start"]["line"] + 1
        if message["severity"] == "error":
            refused.add(line)
        elif match := re.fullmatch(r'Type of ".*" is "(.*)"', message["message"]):
            revealed[line] = plain(match[1])
    return revealed, refused


def answer(project: Path, *command: str) -> str:
    """Return what a type checker prints about a project that holds a copy of the source."""
    shutil.copy(SOURCE, project)
    finished = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=project,
        env={**os.environ, "MYPYPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
    )
    # 1: it found errors, as it should. Anything else is trouble of its own.
    assert finished.returncode == 1, finished.stdout + finished.stderr
    return finished.stdout


def plain(revealed: str) -> str:
    """Return a type in words that mypy and pyright share.

    mypy writes modules before names and ``def`` before a signature, and leaves out defaults;
    pyright has a narrower type for what a coroutine function returns.
    """
    words = re.sub(r"\b(?:\w+\.)+(?=\w)", "", revealed)
    words = words.replace("CoroutineType[", "Coroutine[").replace("def (", "(")
    words = re.sub(r"\[\(([^()]*)\), ", r"[[\1], ", words)
    return re.sub(r" =(?: \w+)?(?=[],)])", " = ...", words)


@pytest.mark.parametrize("found_by", [found_by_mypy, found_by_pyright])
def test_signatures_survive(found_by: Callable[[Path], Findings], tmp_path: Path) -> None:
    """Both forms keep parameters and result, on functions and methods of each kind."""
    revealed, refused = found_by(tmp_path)
    expected_revealed, expected_refused = stated()

    assert expected_revealed == revealed
    assert expected_refused == refused
