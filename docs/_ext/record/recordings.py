"""Recordings: what each example printed when a test last ran it.

An example is named by its page and its file: ``transactions/sign_up``. Its recording,
``examples/recorded/<name>.json``, belongs to ``examples/<name>.py`` and holds the lines that it
printed and the digest of the source that printed them. A recording whose digest is not that of
today's source is *stale*. ``nox -s record`` writes recordings; nothing else does.

A recording holds what was printed, except that paths of the machine are cut (:func:`lines_of`).
Two outputs are equal if they differ only in what :data:`MEASURED` lists: figures that no two runs
share. Such a figure on a page is therefore one that was measured, not one that was made up.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .seals import BROKEN, digest, seal

REMEDY = "run: nox -s record"
Made = TypeVar("Made")

#: What differs from run to run: (name, pattern). A figure of seconds with one decimal, such as a
#: timeout of ``30.0 s``, is a fact and is compared; with two or more decimals it is a measurement.
#: So is a number without a unit that has four or more: what ``repr`` makes of seconds.
MEASURED: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "timestamp",
        re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?"),
    ),
    ("duration", re.compile(r"\b\d+\.\d{2,} ?(?:s|ms|µs|us)\b")),
    ("fraction", re.compile(r"\b\d+(?:\.\d{4,}(?:e-\d+)?|(?:\.\d+)?e-\d+)\b")),
    ("address", re.compile(r"\b0x[0-9a-f]{6,16}\b")),
    ("process id", re.compile(r"(?<=\bpid[ =:])\d+\b")),
)

#: Paths of the machine: (pattern, what stands in its place).
PLACES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"[^\s\"'<>]*/site-packages/"), ".../site-packages/"),
    (re.compile(r"[^\s\"'<>]*/lib/python3\.\d+/"), ".../lib/python3/"),
)


class RecordingError(ValueError):
    """A recording that is missing, cannot be read or was edited."""


@dataclass(frozen=True)
class Recording:
    """One file of ``examples/recorded``."""

    example: str
    sha256: str
    output: tuple[str, ...]


@dataclass(frozen=True)
class Problem:
    """What is wrong with an example or its recording; *path* is relative to the project."""

    name: str
    path: str
    message: str


def examples(root: Path) -> list[str]:
    """Return the names of all examples, sorted: every module that is not in a package."""
    folder = root / "examples"
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix()
        for path in folder.rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    )


def example_path(root: Path, name: str) -> Path:
    """Return where the example *name* is."""
    return root / "examples" / f"{name}.py"


def recording_path(root: Path, name: str) -> Path:
    """Return where the recording of the example *name* is."""
    return root / "examples" / "recorded" / f"{name}.json"


def lines_of(output: str, root: Path) -> tuple[str, ...]:
    """Return the lines of *output* with paths of this machine cut.

    Paths below *root* become relative to it. Trailing blanks and blank lines at the end go.
    """
    text = output.replace(f"{root}/", "")
    for pattern, instead in PLACES:
        text = pattern.sub(instead, text)
    return tuple(line.rstrip() for line in text.rstrip().splitlines())


def masked(lines: Iterable[str]) -> list[str]:
    """Return *lines* with everything in :data:`MEASURED` replaced by its name."""
    result = []
    for line in lines:
        for name, pattern in MEASURED:
            line = pattern.sub(f"<{name}>", line)
        result.append(line)
    return result


def read(
    root: Path, path: Path, missing: str, what: str, make: Callable[[dict[str, Any]], Made]
) -> Made:
    """Return what *make* makes of the sealed file at *path*.

    :raises RecordingError: if it is *missing*, is not *what* it should be, or was edited.
    """
    shown = path.relative_to(root).as_posix()
    if not path.is_file():
        raise RecordingError(f"{missing} ({shown} is missing); {REMEDY}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        whole = data.pop("seal", None) == seal(data)
        found = make(data)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordingError(f"{shown} is not {what} ({error!r}); {REMEDY}") from error
    if not whole:
        raise RecordingError(f"{shown} {BROKEN}; {REMEDY}")
    return found


def load(root: Path, name: str) -> Recording:
    """Return the recording of the example *name*.

    :raises RecordingError: if it is missing, damaged or edited.
    """
    missing = f"example '{name}' has no recording"

    def made(data: dict[str, Any]) -> Recording:
        return Recording(data["example"], data["sha256"], tuple(map(str, data["output"])))

    return read(root, recording_path(root, name), missing, "a recording", made)


def save(root: Path, name: str, output: Sequence[str]) -> bool:
    """Write the recording of the example *name*; return whether the file changed.

    A recording that differs only in measured figures, of the same source, is left alone.
    """
    source = example_path(root, name).read_text(encoding="utf-8")
    new = Recording(f"{name}.py", digest(source), tuple(output))
    try:
        old = load(root, name)
    except RecordingError:
        pass
    else:
        if (old.example, old.sha256, masked(old.output)) == (
            new.example,
            new.sha256,
            masked(new.output),
        ):
            return False
    path = recording_path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"example": new.example, "sha256": new.sha256, "output": list(new.output)}
    data["seal"] = seal(data)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return True


def stale(root: Path, name: str) -> str:
    """Return what to tell of the example *name*, which changed: the test that records it, too."""
    which = ""
    for path in sorted((root / "tests").rglob("test_*.py")):
        before, found, _ = path.read_text(encoding="utf-8").partition(f'recorded("{name}"')
        if found:
            which = f" -- {path.relative_to(root).as_posix()}"
            around = re.findall(r"^(?:async )?(?:def|class) (\w+)", before, re.MULTILINE)[-1:]
            which += "".join(f"::{each}" for each in around if each.startswith("test_"))
            break
    return f"example '{name}' changed after its output was recorded; {REMEDY}{which}"


def problems(root: Path) -> Iterator[Problem]:
    """Yield every missing, damaged or stale recording, and each recording without an example."""
    known = examples(root)
    for name in known:
        path = example_path(root, name)
        shown = path.relative_to(root).as_posix()
        try:
            recording = load(root, name)
        except RecordingError as error:
            missing = not recording_path(root, name).is_file()
            more = f". If no test runs it, add one that calls recorded('{name}', ...)" * missing
            yield Problem(name, shown, f"{error}{more}")
            continue
        if recording.sha256 != digest(path.read_text(encoding="utf-8")):
            yield Problem(name, shown, stale(root, name))
    folder = root / "examples" / "recorded"
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name.endswith(".timeline"):
            continue  # see spans
        if name not in known:
            shown = path.relative_to(root).as_posix()
            yield Problem(
                name,
                shown,
                f"recording '{name}' has no example (examples/{name}.py); delete {shown}",
            )
