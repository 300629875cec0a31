"""The page of messages: what a run printed, or an error said, is on it word for word."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/reference/messages.md"

SAYS = """
def mistake(make):
    try:
        make()
    except Exception as error:
        kind = type(error)
        print(f"{{kind.__module__}}.{{kind.__name__}}: {{' '.join(str(error).split())}}")

"""
"""What a script begins with that prints its mistakes: a template, as what follows it is."""


def wordings():
    """Return the lines that the page gives as wordings of messages."""
    return re.findall(r"^- `(.*)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def is_on_the_page(output, lines=5):
    """Assert that the page has each of so many *lines* of *output* among its wordings."""
    known = wordings()
    assert [line for line in output.splitlines() if line not in known] == []
    assert len(set(output.splitlines())) == output.count("\n") == lines


def is_known(error):
    """Assert that the page has *error*, one of Python's own, among its wordings."""
    assert f"{type(error).__name__}: {error}" in wordings()


def is_answered(error):
    """Assert that the page has *error* among its wordings, as Django or as the driver prints it."""
    kinds = [type(each) for each in (error, error.__cause__) if each is not None]
    said = " ".join(str(error).split())
    assert {f"{kind.__module__}.{kind.__qualname__}: {said}" for kind in kinds} & {*wordings()}
