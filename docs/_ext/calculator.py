"""The ``calculator`` directive: whether the connections of all processes fit.

It shows the formula and one worked example as text, and a form with the same figures. The form is
hidden until ``calculator.js`` makes it work; that script stands on this page only.

:func:`verdict` is what the script has to say for the same figures; a test compares them.
"""

from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from . import SAFE

#: Name, label, least and first value of each field, in the order of the formula.
FIELDS = (
    ("processes", "Processes, on all machines (old and new ones while you deploy)", 1, 4),
    ("threads", "Threads of a process (ASGI_THREADS)", 1, 10),
    ("aliases", "Database aliases on this server", 1, 1),
    ("limit", "max_connections of the server", 1, 100),
    ("reserved", "Slots reserved for superusers", 0, 3),
    ("others", "Other clients (psql, cron jobs, other programs)", 0, 10),
)
#: What the worked example and the form begin with.
FIGURES = {name: value for name, _, _, value in FIELDS}


def verdict(
    processes: int, threads: int, aliases: int, limit: int, reserved: int, others: int
) -> str:
    """Return whether the connections fit, and what to change if they do not."""
    needed = processes * threads * aliases
    room = max(limit - reserved - others, 0)
    if needed <= room:
        return f"fits: at most {needed} connections, and there is room for {room}"
    most = room // (processes * aliases)
    fewer = f"lower ASGI_THREADS to {most}" if most else "run fewer processes"
    return (
        f"too many: up to {needed} connections, and there is room for {room}; {fewer}, raise "
        f"max_connections to {needed + reserved + others}, or put PgBouncer in between"
    )


class Calculator(SphinxDirective):
    """Show the formula, the worked example and the form."""

    def run(self) -> list[nodes.Node]:
        """Return them."""
        formula = "processes * threads * aliases ≤ max_connections - reserved - others"
        needed = " * ".join(str(FIGURES[name]) for name in ("processes", "threads", "aliases"))
        room = " - ".join(str(FIGURES[name]) for name in ("limit", "reserved", "others"))
        box = nodes.container("", classes=["calculator"])
        box += nodes.paragraph("", "", nodes.strong("", formula))
        box += nodes.paragraph("", f"For example, {needed} and {room}: {verdict(**FIGURES)}.")
        box += nodes.raw("", form(), format="html")
        return [box]


def form() -> str:
    """Return the form, hidden."""
    rows = "".join(
        f'<label for="calculator-{name}">{escape(label)}</label>'
        f'<input id="calculator-{name}" name="{name}" type="number" inputmode="numeric" '
        f'min="{least}" max="100000" step="1" value="{value}" required>'
        for name, label, least, value in FIELDS
    )
    names = " ".join(f"calculator-{name}" for name, *_ in FIELDS)
    result = f'<output for="{names}" aria-live="polite"></output>'
    return f'<form class="calculator-form" hidden aria-label="Connections">{rows}{result}</form>'


def add_script(
    app: Sphinx, page: str, template: str, context: dict[str, object], doctree: nodes.document
) -> None:
    """Put the script on the pages that have a form."""
    if doctree is not None and any(
        "calculator" in each["classes"] for each in doctree.findall(nodes.container)
    ):
        app.add_js_file("calculator.js", loading_method="defer")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive."""
    app.add_directive("calculator", Calculator)
    app.connect("html-page-context", add_script)
    return SAFE
