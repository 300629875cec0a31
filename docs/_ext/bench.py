"""The ``benchmark`` directive and the role ``bench``: what the last recorded benchmark says.

``nox -s bench`` (``tests/bench/``) writes its results to ``docs/_recorded/bench.json``, and with
them the tables, the charts and the sentences with figures that the page is made of. The build shows
them: the directive a table or a chart, the role a sentence. What is not there fails the build.

The directive ``bad-day`` and the role of that name do the same with what
``nox -s bench-bad-days`` wrote to ``docs/_recorded/bad_days.json``.

The role ``figure`` puts a figure of ``nox -s bench-deployment`` into a sentence: what it has under
the keys ``servers.gunicorn.4.requests``; of a spread, the median.
"""

import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.typing import ExtensionMetadata

from . import SAFE
from .proven import table
from .record.seals import BROKEN, seal

RESULTS, BAD_DAYS = "docs/_recorded/bench.json", "docs/_recorded/bad_days.json"
STACK = "docs/_recorded/stack.json"
# The file of each directive and role.
FILES = {"benchmark": RESULTS, "bench": RESULTS, "bad-day": BAD_DAYS, "figure": STACK}
REMEDIES = {
    RESULTS: f"run 'nox -s bench -- --json {RESULTS}'",
    BAD_DAYS: "run 'nox -s bench-bad-days'",
    STACK: "run 'nox -s bench-deployment'",
}


def look_up(root: Path, name: str, *keys: str) -> Any:
    """Return what the results called *name* have under *keys*; of a spread, the median.

    :raises ValueError: if they do not have it, or are not what was recorded.
    """
    try:
        value = results = json.loads((root / name).read_text(encoding="utf-8"))
        if results.get("seal") != seal(results):
            raise ValueError(BROKEN)
        for key in keys:
            value = value[key]
        if isinstance(value, dict) and "head" not in value:
            value = value["median"]
    except (OSError, ValueError, KeyError) as error:
        problem = f"{name}: {'.'.join(keys)!r}: {error!r}; {REMEDIES[name]}"
        raise ValueError(problem) from error
    return value


class Benchmark(SphinxDirective):
    """Show one table or chart; the figures of a chart can be folded out."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the nodes."""
        root, name = self.env.srcdir.parent, FILES[self.name]
        self.env.note_dependency(root / name)
        try:
            shown = look_up(root, name, "shown", self.arguments[0])
        except ValueError as error:
            raise self.error(str(error)) from error
        found = [table(shown["head"], shown["rows"], "benchmark")]
        if "fold" in shown:
            opened = f"<details><summary>{shown['fold']}</summary>"
            found = [raw(shown.get("svg", "") + opened), *found, raw("</details>")]
        return [nodes.container("", *found, classes=["bench"])]


def raw(html: str) -> nodes.raw:
    """Return a node that is *html*."""
    return nodes.raw("", html, format="html")


class Recorded(SphinxRole):
    """Show what the results have: a sentence of the benchmark, or a figure of the stack."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the text, or an error."""
        root, name = self.env.srcdir.parent, FILES[self.name]
        under = () if self.name == "figure" else ("sentences",)
        self.env.note_dependency(root / name)
        try:
            value = look_up(root, name, *under, *self.text.split("."))
        except ValueError as error:
            return [], [self.inliner.reporter.error(str(error), line=self.lineno)]
        return [nodes.Text(value if isinstance(value, str) else f"{value:,.0f}")], []


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive and the roles."""
    for name in ("benchmark", "bad-day"):
        app.add_directive(name, Benchmark)
    for name in ("bench", "bad-day", "figure"):
        app.add_role(name, Recorded())
    app.add_css_file("bench.css")
    return SAFE
