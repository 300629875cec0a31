"""The site as plain text: ``llms.txt`` lists the pages, ``llms-full.txt`` holds them, code and all.

Written from the pages as they were resolved, so that what a directive brought in is in: examples,
what they printed, the reference. *What is proven* is left out: it says again what the pages say.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.text import TextTranslator

from . import SAFE
from .claims import PAGE
from .proven import in_reading_order


class Plain(TextTranslator):
    """Text with the headings, tables and fences of Markdown."""

    def end_state(self, wrap: bool = False, *most: Any, **more: Any) -> None:
        """Leave a paragraph in one line: to wrap it took longer than all else here."""
        super().end_state(False, *most, **more)

    def visit_Text(self, node: nodes.Text) -> None:  # noqa: N802 - the name of the node
        self.add_text(node.astext().replace("\n", " "))

    def as_it_is(self, text: str) -> None:
        """Add a block, and leave out what is in the node."""
        self.new_state(0)
        self.add_text(text)
        self.end_state()
        raise nodes.SkipNode

    def visit_title(self, node: nodes.Element) -> None:
        self.as_it_is(f"{'#' * max(self.sectionlevel, 1)} {node.astext()}")

    def visit_literal_block(self, node: nodes.Element) -> None:
        self.as_it_is(f"```{node.get('language', '')}\n{node.astext().rstrip()}\n```")

    def visit_literal(self, node: nodes.Element) -> None:
        self.add_text(f"`{node.astext()}`")
        raise nodes.SkipNode

    def visit_table(self, node: nodes.Element) -> None:
        if "timeline-table" in node["classes"]:
            raise nodes.SkipNode  # a picture's figures: the sentence above says what they show
        rows = [[each.astext() for each in row] for row in node.findall(nodes.row)]
        rows.insert(1, ["---"] * len(rows[0]))
        self.as_it_is("\n".join(f"| {' | '.join(row)} |".replace("\n", " ") for row in rows))

    def visit_raw(self, node: nodes.Element) -> None:
        if "source_text" in node:  # an example, between the lines of the one before
            self.as_it_is(f"```python\n{node['source_text'].rstrip()}\n```")
        raise nodes.SkipNode

    def unknown_visit(self, node: nodes.Node) -> None:
        """Go on with what is in the node: the site has nodes of its own."""

    unknown_departure = unknown_visit


def keep(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Keep the page as text, with its title and its description."""
    if app.builder.format != "html" or docname.startswith(PAGE):
        return
    meta = (each["content"] for each in doctree.findall(nodes.meta) if "content" in each)
    paragraphs = (" ".join(each.astext().split()) for each in doctree.findall(nodes.paragraph))
    translator = Plain(doctree, app.builder)
    doctree.walkabout(translator)
    told = next(meta, "") or next(paragraphs, "").partition(". ")[0]
    kept(app)[docname] = (app.env.titles[docname].astext(), told, translator.body)


def kept(app: Sphinx) -> dict[str, tuple[str, str, str]]:
    """Return the pages of this build: name to title, description and text."""
    return vars(app).setdefault("llms_pages", {})  # type: ignore[no-any-return]


def write(app: Sphinx, error: Exception | None) -> None:
    """Write both files, unless only some of the pages were built."""
    order = [each for each in in_reading_order(app.env) if not each.startswith(PAGE)]
    if error or app.builder.format != "html" or set(order) - set(kept(app)):
        return
    base: Any = app.config.html_baseurl
    head = f"# {app.config.project}\n\n> {kept(app)[app.config.root_doc][1]}\n"
    listed, pages = "", ""
    for docname in order:
        title, told, text = kept(app)[docname]
        address = base + app.builder.get_target_uri(docname)
        listed += f"- [{title}]({address}): {told}\n"
        pages += f"\n\n<!-- {address} -->\n\n{text}"
    (app.outdir / "llms.txt").write_text(f"{head}\n## Pages\n\n{listed}", encoding="utf-8")
    (app.outdir / "llms-full.txt").write_text(head + pages, encoding="utf-8")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Write the files at the end of a build."""
    app.connect("doctree-resolved", keep, priority=900)
    app.connect("build-finished", write)
    return SAFE
