"""The ``example`` directive: a page shows the file that the tests run.

::

    ```{example} database_access/inline
    :output:
    ```

shows the whole module ``examples/database_access/inline.py``, its file name above it, and where a
reader puts it, what it needs and what it leaves (see ``places``). ``output``
adds what it printed when it was last recorded, under the word "prints" or what is written behind
``:output:``. ``part`` shows one part only (see ``markers``). A part alone does not count as showing
the example: a reader must be able to copy all of it. ``before`` names an example that this one
mends: one block then shows both, the lines of the other with a minus, those that are new with a
plus, and what each printed. The button copies this one; the other stands below, folded.

::

    ```{change} index/before index/after
    ```

shows no more than the lines in which two examples differ. Both are shown elsewhere, as the closed
set sees to.

Nothing is run here. A page is read again when its example or recording changes. What is missing or
stale is reported by ``closed_set``, in every build, not only when the page is read.
"""

import difflib
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.highlighting import PygmentsBridge
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from . import SAFE
from .record import markers, places, recordings

logger = logging.getLogger(__name__)

MINUS = "\N{MINUS SIGN}"


class Example(SphinxDirective):
    """Show one example."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Callable[[str], Any]] | None] = {
        "before": directives.unchanged_required,
        "output": directives.unchanged,
        "part": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Return the source, captioned, and its output."""
        root = self.env.srcdir.parent
        name, part = self.arguments[0], self.options.get("part")
        before = self.options.get("before")
        shown, old = self.read(root, name, part), before and self.read(root, before)
        if shown is None or (before and old is None):
            return []
        block = nodes.container(
            "", literal_block=True, classes=["literal-block-wrapper", "example"]
        )
        block["example"] = name
        caption = f"examples/{name}.py" + (f" ({part})" if part else "")
        if before and old:
            block += nodes.caption(
                "", f"{caption}, and {MINUS} what {Path(before).name}.py has instead"
            )
            html = difference(old.text, shown.text)
            block += nodes.raw("", html, format="html", source_text=shown.text)
            outputs = [(f"{MINUS} ", before), ("+ ", name)]
        else:
            block += nodes.caption("", caption)
            block += literal(shown.text, "python", shown.highlighted)
            outputs = [("", name)]
        if part is None:
            said = str(places.place(name, shown.text)).split("`")
            words = [(nodes.literal if n % 2 else nodes.inline)("", x) for n, x in enumerate(said)]
            block.insert(1, nodes.paragraph("", "", *words, classes=["example-place"]))
            if places.full_file(name, shown.text):
                up = "../" * self.env.current_document.docname.count("/")
                file = places.full_path(name, shown.text)
                link = nodes.reference("", "Full file", refuri=f"{up}{file}", internal=True)
                block[1] += [nodes.Text(" "), link, nodes.Text(", which runs by itself.")]
        if "output" in self.options:
            for sign, each in outputs:
                block += self.output(root, each, sign)
        if before and old:
            folded = nodes.container("", literal_block=True)
            now = places.place(name, shown.text).needs
            more = [each for each in places.place(before, old.text).needs if each not in now]
            which = f", which needs {', '.join(more)}:" if more else ""
            path = f"<code>examples/{escape(before)}.py</code>"
            summary = f"<summary>All of {MINUS}{which} {path}</summary>"
            folded += nodes.raw("", f"<details>{summary}", format="html")
            folded += literal(old.text, "python")
            folded += nodes.raw("", "</details>", format="html")
            block += folded
        page = self.env.metadata[self.env.current_document.docname]
        for each in () if part else filter(None, (name, before)):
            page.setdefault("examples", {})[each] = self.get_source_info()[1]
        return [block]

    def read(self, root: Path, name: str, part: str | None = None) -> markers.Excerpt | None:
        """Return what is to be shown of an example, or nothing and complain."""
        path = recordings.example_path(root, name)
        self.env.note_dependency(path)
        if not path.is_file():
            self.complain(
                f"no example '{name}': examples/{name}.py does not exist; "
                "correct the name or add the file"
            )
            return None
        try:
            return markers.excerpt(path.read_text(encoding="utf-8"), part)
        except markers.MarkerError as error:
            self.complain(f"example '{name}', examples/{name}.py: {error}")
            return None

    def output(self, root: Path, name: str, sign: str) -> list[nodes.Node]:
        """Return what the example printed, or nothing if that is not recorded."""
        self.env.note_dependency(recordings.recording_path(root, name))
        try:
            lines = recordings.load(root, name).output
        except recordings.RecordingError:
            return []  # closed_set reports it
        if not lines:
            self.complain(
                f"example '{name}' printed nothing when it was recorded; take ':output:' away"
            )
            return []
        traceback = any(line.startswith("Traceback (most recent call last)") for line in lines)
        label = self.options["output"] or "prints"
        block = nodes.container("", classes=["example-output"])
        block += nodes.paragraph("", sign + label, classes=["example-output-label"])
        block += literal("\n".join(lines) + "\n", "pytb" if traceback else "text")
        return [block]

    def complain(self, message: str) -> None:
        """Warn, and read the page again in the next build so that the warning cannot get lost."""
        self.env.note_reread()
        logger.warning(message, location=self.get_location(), type="example")


class Change(Example):
    """Show the way from one example to another."""

    required_arguments = 2
    option_spec: ClassVar[dict[str, Callable[[str], Any]] | None] = {}

    def run(self) -> list[nodes.Node]:
        """Return the block."""
        old, new = (self.read(self.env.srcdir.parent, name) for name in self.arguments)
        if old is None or new is None:
            return []
        changed = [
            f"{'-' if sign == 'del' else '+'}{line}\n"
            for sign, line in compared(old.text, new.text)
            if sign and line.strip()
        ]
        block = literal("".join(changed), "diff")
        block["classes"].append("change")
        return [block]


def literal(text: str, language: str, highlighted: tuple[int, ...] = ()) -> nodes.literal_block:
    """Return *text* as a block of code that ``closed_set`` lets pass."""
    block = nodes.literal_block(text, text, language=language)
    block["highlight_args"] = {"hl_lines": list(highlighted)} if highlighted else {}
    block["from_a_file"] = True
    return block


def compared(old: str, new: str) -> list[tuple[str, str]]:
    """Return the lines of both: ``del``, ``ins`` or nothing, and the line."""
    before, after = old.splitlines(), new.splitlines()
    lines: list[tuple[str, str]] = []
    for what, a, b, c, d in difflib.SequenceMatcher(None, before, after, False).get_opcodes():
        if what != "equal":
            lines += [("del", each) for each in before[a:b]]
        lines += [("" if what == "equal" else "ins", each) for each in after[c:d]]
    return lines


def difference(old: str, new: str) -> str:
    """Return *new* as HTML, highlighted, with the lines of *old* that it no longer has."""
    lines = compared(old, new)
    html = PygmentsBridge("html").highlight_block("\n".join(each for _, each in lines), "python")
    head, _, rest = html.partition("<pre>")
    body, _, foot = rest.partition("</pre>")
    marked = [
        f"<{sign}>{line}\n</{sign}>" if sign else f"{line}\n"
        for (sign, _), line in zip(lines, body.rstrip("\n").split("\n"), strict=True)
    ]
    whole = f"{head}<pre>{''.join(marked)}</pre>{foot}"
    return f'<div class="highlight-python difference notranslate">{whole}</div>'


def shown(env: BuildEnvironment) -> dict[str, tuple[str, int]]:
    """Return where each example is shown as a whole: example to page and line."""
    return {
        name: (page, line)
        for page, kept in env.metadata.items()
        for name, line in kept.get("examples", {}).items()
    }


def write_full_files(app: Sphinx) -> list[Any]:
    """Write the full file of each example that is shown and has one; add no page."""
    root = app.srcdir.parent
    for name in shown(app.env):
        source = recordings.example_path(root, name).read_text(encoding="utf-8")
        source = markers.excerpt(source).text
        if text := places.full_file(name, source):
            path = app.outdir / places.full_path(name, source)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return []


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directives."""
    app.add_directive("example", Example)
    app.add_directive("change", Change)
    app.connect("html-collect-pages", write_full_files)
    app.add_js_file("fold.js", loading_method="defer")
    return SAFE
