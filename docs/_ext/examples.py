"""The ``example`` directive: a page shows the file that the tests run.

::

    ```{example} database_access/inline
    :output:
    ```

shows the whole module ``examples/database_access/inline.py``, its file name above it. ``output``
adds what it printed when it was last recorded, under the word "prints" or what is written behind
``:output:``. ``part`` shows one part only (see ``markers``). A part alone does not count as showing
the example: a reader must be able to copy all of it.

Nothing is run here. A page is read again when its example or recording changes. What is missing or
stale is reported by ``closed_set``, in every build, not only when the page is read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.environment.collectors import EnvironmentCollector
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from .record import markers, recordings

logger = logging.getLogger(__name__)


class Example(SphinxDirective):
    """Show one example."""

    required_arguments = 1
    option_spec: ClassVar[dict[str, Callable[[str], Any]] | None] = {
        "output": directives.unchanged,
        "part": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Return the source, captioned, and its output."""
        root = self.env.srcdir.parent
        name, part = self.arguments[0], self.options.get("part")
        path = recordings.example_path(root, name)
        self.env.note_dependency(path)
        if not path.is_file():
            self.complain(
                f"no example '{name}': examples/{name}.py does not exist; "
                "correct the name or add the file"
            )
            return []
        try:
            shown = markers.excerpt(path.read_text(encoding="utf-8"), part)
        except markers.MarkerError as error:
            self.complain(f"example '{name}', examples/{name}.py: {error}")
            return []
        block = nodes.container(
            "", literal_block=True, classes=["literal-block-wrapper", "example"]
        )
        block["example"], block["part"] = name, part
        caption = f"examples/{name}.py" + (f" ({part})" if part else "")
        block += nodes.caption("", caption)
        block += literal(shown.text, "python", shown.highlighted)
        if "output" in self.options:
            block += self.output(root, name)
        self.set_source_info(block)
        return [block]

    def output(self, root: Path, name: str) -> list[nodes.Node]:
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
        block += nodes.paragraph("", label, classes=["example-output-label"])
        block += literal("\n".join(lines) + "\n", "pytb" if traceback else "text")
        return [block]

    def complain(self, message: str) -> None:
        """Warn, and read the page again in the next build so that the warning cannot get lost."""
        self.env.note_reread()
        logger.warning(message, location=self.get_location(), type="example")


def literal(text: str, language: str, highlighted: tuple[int, ...] = ()) -> nodes.literal_block:
    """Return *text* as a block of code that ``closed_set`` lets pass."""
    block = nodes.literal_block(text, text, language=language)
    block["highlight_args"] = {"hl_lines": list(highlighted)} if highlighted else {}
    block["from_a_file"] = True
    return block


class ShownExamples(EnvironmentCollector):
    """Keep where each example is shown as a whole: page to [(example, line)]."""

    def clear_doc(self, app: Sphinx, env: BuildEnvironment, docname: str) -> None:
        """Forget a page."""
        shown(env).pop(docname, None)

    def merge_other(
        self, app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment
    ) -> None:
        """Take over what another process of a parallel build read."""
        shown(env).update({name: found for name, found in shown(other).items() if name in docnames})

    def process_doc(self, app: Sphinx, doctree: nodes.document) -> None:
        """Note the examples of the page just read."""
        found = [
            (block["example"], block.line or 0)
            for block in doctree.findall(nodes.container)
            if block.get("example") and not block["part"]
        ]
        shown(app.env)[app.env.current_document.docname] = found


def shown(env: BuildEnvironment) -> dict[str, list[tuple[str, int]]]:
    """Return where examples are shown: page to [(example, line)]."""
    if not hasattr(env, "shown_examples"):
        env.shown_examples = {}  # type: ignore[attr-defined]
    return env.shown_examples  # type: ignore[attr-defined, no-any-return]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive."""
    app.add_directive("example", Example)
    app.add_env_collector(ShownExamples)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
