"""The ``benchmark`` directive: figures of the last recorded benchmark.

``docs/_recorded/bench.json`` is written by ``nox -s bench`` (``tests/bench/``) and read by the
build. With the name of a row the directive draws this row as a table, and says what was to be
reached and whether it was; with ``machine`` it tells what the figures were measured on.

The role ``figure`` puts a figure of ``nox -s bench-deployment`` into a sentence: what it has under
the keys ``servers.gunicorn.4.requests``; of a spread, the median.
"""

import json
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.typing import ExtensionMetadata

from . import SAFE
from .proven import enumerated, table
from .record.seals import BROKEN, seal

RESULTS = "docs/_recorded/bench.json"
REMEDY = f"run 'nox -s bench -- --json {RESULTS}'"
STACK = "docs/_recorded/stack.json"


class Benchmark(SphinxDirective):
    """Show one row of the results, or the machine."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return the table or the paragraph."""
        name = self.arguments[0]
        path = self.env.srcdir.parent / RESULTS
        self.env.note_dependency(path)
        if not path.exists():
            raise self.error(f"{RESULTS} is missing; {REMEDY}")
        results = json.loads(path.read_text(encoding="utf-8"))
        if results.get("seal") != seal(results):
            raise self.error(f"{RESULTS} {BROKEN}; {REMEDY}")
        if name == "machine":
            return [nodes.paragraph("", machine(results))]
        if name not in results["rows"]:
            known = ", ".join(results["rows"])
            raise self.error(f"{RESULTS} has no row '{name}' (rows: {known}); {REMEDY}")
        return [contestants(results["rows"][name]), verdicts(results["rows"][name])]


def machine(results: dict[str, Any]) -> str:
    """Return a sentence on what the figures depend on."""
    versions = [f"Python {results['python']}"]
    versions += [f"{name} {version}" for name, version in results["packages"].items()]
    if "postgresql" in results:
        versions.append(f"PostgreSQL {results['postgresql']}")
    return (
        f"Measured on {results['date']}, on {results['cpus']} CPUs ({results['processor']}, "
        f"{results['system']}) that the database shares, with {enumerated(versions)}, "
        f"on the event loop of {results['loop']}. The load of the machine was "
        f"{results['load']:.1f} when it began."
    )


def contestants(result: dict[str, Any]) -> nodes.table:
    """Return a table with a row for each contestant."""
    unit = result.get("unit", "call")
    heads = ["way", f"{unit}s a second", f"CPU µs a {unit}"]
    heads += [f"to {other}" for other in result["reach"]]
    heads += ["peak of memory"] * ("unit" in result)
    fails = any(percent_failed(figures) for figures in result["contestants"].values())
    heads += ["failed"] * fails
    rows = []
    for name, figures in result["contestants"].items():
        rate = figures["calls_per_second"]["median"]
        cells = [name, f"{rate:,.0f}", f"{figures['cpu_us_per_call']['median']:.1f}"]
        for other, ratio in figures["ratio_to"].items():
            middle = f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
            cells.append(f"{ratio['median']:.2f}" + ("" if other == name else middle))
        if "unit" in result:
            cells.append(f"{figures['peak_mib']['high']:.0f} MiB")
        cells += [f"{percent_failed(figures):.0f} %"] * fails
        rows.append(cells)
    return table(heads, rows, "benchmark")


def percent_failed(figures: dict[str, Any]) -> float:
    """Return how many of a hundred calls failed."""
    return float(figures["failed_percent"]["median"])


def verdicts(result: dict[str, Any]) -> nodes.paragraph:
    """Return what ormbridge was to reach, and whether it did."""
    said = []
    for other, wanted in result["reach"].items():
        if wanted is None:  # compared, and nothing was to be reached
            continue
        seen = result["contestants"]["ormbridge"]["ratio_to"][other]["median"]
        verdict = "reached" if seen >= wanted else "not reached"
        said.append(f"To reach: {wanted:.2f} of {other}; seen: {seen:.2f}, {verdict}.")
    said.append(f"Medians of {result['rounds']} rounds.")
    return nodes.paragraph("", " ".join(said))


class Figure(SphinxRole):
    """Show one figure of the stack."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the figure as text, or an error."""
        path = self.env.srcdir.parent / STACK
        self.env.note_dependency(path)
        try:
            value = results = json.loads(path.read_text(encoding="utf-8"))
            if results.get("seal") != seal(results):
                raise ValueError(BROKEN)
            for key in self.text.split("."):
                value = value[key]
            value = value["median"] if isinstance(value, dict) else value
        except (OSError, ValueError, KeyError) as error:
            problem = f"{STACK}: {self.text!r}: {error!r}; run 'nox -s bench-deployment'"
            return [], [self.inliner.reporter.error(problem, line=self.lineno)]
        return [nodes.Text(value if isinstance(value, str) else f"{value:,.0f}")], []


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive and the role."""
    app.add_directive("benchmark", Benchmark)
    app.add_role("figure", Figure())
    return SAFE
