"""Spans: what an example's calls did in a recorded run: when, on which thread, for whom.

``examples/recorded/<name>.timeline.json`` belongs to ``examples/<name>.py``; an example that is
recorded in two ways has ``<name>-<way>.timeline.json`` for each. The file holds the digest of the
example, the day and the environment of the run, and its spans. Times are seconds since the first
call was asked for, as they were measured: nothing is moved or stretched.

No two runs take equally long, so they are compared by their :func:`structure`, without times.
"""

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .recordings import REMEDY, RecordingError, example_path, read
from .seals import digest, seal

SUFFIX = ".timeline.json"


@dataclass(frozen=True)
class Span:
    """One call; or, if *held*, the time that a thread was kept for a request or socket."""

    #: What was called.
    call: str
    #: The request or socket that it belongs to.
    where: str
    #: The name of the thread that it ran on.
    thread: str
    #: The connections of this thread as the call ended, numbered in the order they were seen.
    connections: tuple[int, ...]
    asked: float
    began: float
    ended: float
    held: bool = False


@dataclass(frozen=True)
class Timeline:
    """One file: the spans of a run, in the order they began."""

    example: str
    sha256: str
    recorded: str
    environment: Mapping[str, str]
    spans: tuple[Span, ...]


def example_of(name: str) -> str:
    """Return the example that the timeline *name* belongs to."""
    return name.partition("-")[0]


def timeline_path(root: Path, name: str) -> Path:
    """Return where the timeline *name* is."""
    return root / "examples" / "recorded" / f"{name}{SUFFIX}"


def names(root: Path) -> list[str]:
    """Return the names of all timelines, sorted."""
    folder = root / "examples" / "recorded"
    found = folder.rglob(f"*{SUFFIX}")
    return sorted(path.relative_to(folder).as_posix().removesuffix(SUFFIX) for path in found)


def most_at_once(spans: Iterable[Span]) -> int:
    """Return how many calls ran at one time, at most."""
    calls = [span for span in spans if not span.held]
    # Who ends as another begins does not run beside it; a call too short to measure counts too.
    return max(
        (
            sum(each is other or other.began <= each.began < other.ended for other in calls)
            for each in calls
        ),
        default=0,
    )


def structure(spans: Iterable[Span], *, overlaps: bool = True) -> dict[str, Any]:
    """Return what two runs of the same example have in common, as lists and numbers.

    :param overlaps: whether to say which calls ran at the same time. Leave it out where the load
        of the machine decides that; how many threads and connections there were stays.
    """
    spans = list(spans)
    found: dict[str, Any] = {
        "threads": len({span.thread for span in spans}),
        "connections": len({number for span in spans for number in span.connections}),
        "spans": sorted(f"{each.where}: {'held' if each.held else each.call}" for each in spans),
    }
    if overlaps:
        found["at once"] = most_at_once(spans)
        found["overlaps"] = sorted(
            {
                " and ".join(sorted((one.where, other.where)))
                for one, other in itertools.combinations(spans, 2)
                if one.where != other.where
                and max(one.began, other.began) < min(one.ended, other.ended)
            }
        )
    return found


def load(root: Path, name: str) -> Timeline:
    """Return the timeline *name*.

    :raises RecordingError: if it is missing, damaged, edited, or older than its example.
    """
    path = timeline_path(root, name)

    def made(data: dict[str, Any]) -> Timeline:
        spans = (Span(**{**x, "connections": tuple(x["connections"])}) for x in data["spans"])
        return Timeline(**{**data, "spans": tuple(spans)})

    missing = f"timeline '{name}' is not recorded"
    timeline = read(root, path, missing, "a timeline", made)
    source = example_path(root, example_of(name))
    if not source.is_file():
        raise RecordingError(f"timeline '{name}' has no example; delete {path.relative_to(root)}")
    if timeline.sha256 != digest(source.read_text(encoding="utf-8")):
        raise RecordingError(f"timeline '{name}' is older than its example; {REMEDY}")
    return timeline


def save(
    root: Path,
    name: str,
    spans: Iterable[Span],
    environment: Mapping[str, str],
    day: str,
    *,
    overlaps: bool = True,
) -> bool:
    """Write the timeline *name*; return whether the file changed.

    One of the same source and with the same structure is left alone.
    """
    spans = tuple(spans)
    try:
        old = load(root, name).spans
        if structure(old, overlaps=overlaps) == structure(spans, overlaps=overlaps):
            return False
    except RecordingError:
        pass
    source = example_path(root, example_of(name))
    sha256 = digest(source.read_text(encoding="utf-8"))
    data = asdict(Timeline(f"{example_of(name)}.py", sha256, day, environment, spans))
    new = {**data, "seal": seal(data)}
    lines = [f"    {json.dumps(each, ensure_ascii=False)}" for each in new.pop("spans")]
    head = json.dumps(new, indent=2, ensure_ascii=False).removesuffix("\n}")
    path = timeline_path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = head + ',\n  "spans": [\n' + ",\n".join(lines) + "\n  ]\n}\n"
    path.write_text(text, encoding="utf-8")
    return True
