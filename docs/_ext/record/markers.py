"""Markers in an example: which lines to highlight, which part to show.

A marker is a comment, so the example stays a module that runs. It is taken out before the
example is shown, so nobody copies it:

* ``# <--`` at the end of a line highlights this line;
* ``# [name]`` and ``# [/name]``, each on a line of its own, enclose the part *name*. Parts may
  nest. A part is shown without the indentation that all its lines share.

Line numbers are never used: they go wrong without a word when a line is added above.
"""

import re
import textwrap
from dataclasses import dataclass

HIGHLIGHT = re.compile(r"[ \t]*# <--[ \t]*$")
PART = re.compile(r"^[ \t]*# \[(?P<end>/?)(?P<name>[\w-]+)\][ \t]*$")


class MarkerError(ValueError):
    """A marker that is missing, repeated or not closed."""


@dataclass(frozen=True)
class Excerpt:
    """What is shown of an example: its text and the highlighted lines, counted from 1."""

    text: str
    highlighted: tuple[int, ...]


def excerpt(source: str, part: str | None = None) -> Excerpt:
    """Take the markers out of *source*, and everything outside *part* if one is named.

    :raises MarkerError: if a part is unknown, repeated, not closed or not opened.
    """
    kept: list[str] = []
    highlighted: list[int] = []
    opened: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(source.splitlines(), start=1):
        if marker := PART.match(line):
            name = marker["name"]
            if not marker["end"]:
                if name in seen:
                    raise MarkerError(
                        f"line {number}: part '{name}' is marked twice; give each part its own name"
                    )
                seen.add(name)
                opened.append(name)
            elif name in opened:
                opened.remove(name)
            else:
                raise MarkerError(
                    f"line {number}: '# [/{name}]' ends a part that was not begun; "
                    f"add '# [{name}]' above"
                )
            continue
        if part is not None and part not in opened:
            continue
        shown = HIGHLIGHT.sub("", line)
        kept.append(shown)
        if shown != line:
            highlighted.append(len(kept))
    if opened:
        raise MarkerError(f"part '{opened[-1]}' is not closed; add '# [/{opened[-1]}]'")
    if part is not None and part not in seen:
        known = ", ".join(sorted(seen)) or "none"
        raise MarkerError(
            f"no part '{part}' (parts: {known}); enclose it in '# [{part}]' and '# [/{part}]'"
        )
    text = textwrap.dedent("\n".join(kept)) if part is not None else "\n".join(kept)
    return Excerpt(text.rstrip("\n") + "\n", tuple(highlighted))
