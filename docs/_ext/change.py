"""The ``change`` directive: the lines in which two examples differ, with - and + in front.

::

    ```{change} index/before index/after
    ```

What both have is left out: it is shown elsewhere, as the closed set sees to.
"""

import difflib

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from .examples import literal
from .record import markers, recordings


class Change(SphinxDirective):
    """Show the way from one example to another."""

    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        """Return the block."""
        texts = []
        for name in self.arguments:
            path = recordings.example_path(self.env.srcdir.parent, name)
            self.env.note_dependency(path)
            if not path.is_file():
                raise self.error(f"no example '{name}': examples/{name}.py does not exist")
            texts.append(markers.excerpt(path.read_text(encoding="utf-8")).text.splitlines())
        # The first two lines of a diff name the files.
        lines = [*difflib.unified_diff(*texts, n=0, lineterm="")][2:]
        changed = [line for line in lines if line[0] in "+-" and line[1:].strip()]
        block = literal("\n".join(changed) + "\n", "diff")
        block["classes"].append("change")
        return [block]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive."""
    app.add_directive("change", Change)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
