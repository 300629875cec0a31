"""Claims: a sentence names the test that proves it, in a footnote.

::

    Twenty calls run at once.[^calls-run-at-once]

    [^calls-run-at-once]: tests/guide/test_database_access.py::test_calls_run_at_once

A footnote is a claim if its text is a test id and nothing else; all others stay footnotes. The note
stands once, at the end of the section that refers to it first. On the page there is no note: all
references of a paragraph, or of a row of a table, become one tick at its end, a link to the first
of these tests in what ``proven`` writes. ``proofs.js`` opens them all in place. A tick is no stop
of the tab key, and no screen reader reads it, until a reader asks for tests. A note that nothing
refers to is refused, and so is, by docutils, a reference without a note. Every build checks every
claim of the site: it warns if the test is unknown, is not in the recorded run, did not pass there,
or changed after it.
"""

import re
from dataclasses import dataclass
from html import escape
from itertools import groupby
from operator import itemgetter
from typing import Any

from docutils import nodes
from docutils.transforms.references import Footnotes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

from . import SAFE
from .record import proofs, runs

logger = logging.getLogger(__name__)

#: Where the pages with the tests are.
PAGE = "proven"
# A single word that names a file of Python or something in it.
_TEST = re.compile(r"\S*(?:\.py|::)\S*")
# A sentence ends at a stop, perhaps with a closing bracket or quote, before a blank.
_END = re.compile(r"[.!?][)\"”]*\s+(?=[A-Z0-9(\"“]|$)")


@dataclass(frozen=True)
class Claim:
    """One sentence that names a test; *sentence* is its pieces: (whether it is code, text)."""

    test: str
    docname: str
    line: int
    anchor: str
    sentence: tuple[tuple[bool, str], ...]


class mark(nodes.Inline, nodes.Element):  # noqa: N801 - docutils names nodes in lower case
    """The mark behind a sentence; ``test`` is the id of its test, ``count`` of how many."""


class NotesToMarks(SphinxTransform):
    """Put marks in the place of the references to claims, and take their notes out."""

    # Before MyST sorts the notes, two steps ahead of docutils, which numbers them.
    default_priority = Footnotes.default_priority - 10

    def apply(self, **kwargs: Any) -> None:
        """Do so; the marks are checked when all pages are read."""
        document = self.document
        for note in [*document.autofootnotes, *document.footnotes]:
            test = note.children[-1].astext() if note.children else ""
            if not _TEST.fullmatch(test):
                continue
            (document.autofootnotes if note.get("auto") else document.footnotes).remove(note)
            note.parent.remove(note)
            references = [
                each for name in note["names"] for each in document.footnote_refs.pop(name, [])
            ]
            for reference in references:
                if reference in document.autofootnote_refs:
                    document.autofootnote_refs.remove(reference)
                node = mark("", test=test)
                node.source, node.line = reference.source, reference.line
                # A note clings to its word, a mark does not. `replace_self` would keep the
                # number that docutils gave to the reference.
                place = reference.parent.index(reference)
                reference.parent[place : place + 1] = [nodes.Text(" "), node]
            if not references:
                self.env.note_reread()
                logger.warning(
                    "no sentence refers to the note '%s' (%s); write [^%s] behind the sentence "
                    "that the test proves, or delete the note",
                    *(note["names"][0], test, note["names"][0]),
                    location=note,
                    type="claim",
                )


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Keep the claims of the page just read, and leave one mark of each block."""
    docname = app.env.current_document.docname
    found: list[Claim] = []
    blocks: dict[nodes.Element, list[mark]] = {}
    for node in doctree.findall(mark):
        anchor = f"claim-{len(blocks) + (block_of(node) not in blocks)}"
        blocks.setdefault(block_of(node), []).append(node)
        sentence = sentence_before(node)
        if not sentence:
            app.env.note_reread()
            logger.warning(
                "claim '%s' follows no sentence; put it behind the sentence it proves",
                node["test"],
                location=node,
                type="claim",
            )
        found.append(Claim(node["test"], docname, node.line or 0, anchor, sentence))
    app.env.metadata[docname]["claims"] = found
    for number, marks in enumerate(blocks.values(), start=1):
        gather(marks, f"claim-{number}")


def block_of(node: nodes.Node) -> nodes.Element:
    """Return what *node* shares one mark with: its row of a table, or its paragraph."""
    found = node.parent
    while isinstance(found, nodes.Inline):
        found = found.parent
    above = found
    while above is not None and not isinstance(above, nodes.row):
        above = above.parent
    return above or found


def gather(marks: list[mark], anchor: str) -> None:
    """Leave the first of *marks*, for all of them, at the end of the text of the last."""
    text = marks[-1].parent
    while isinstance(text, nodes.Inline):
        text = text.parent
    for node in marks:
        place = node.parent.index(node)
        del node.parent[place - 1 : place + 1]  # and the blank before it
    marks[0]["ids"], marks[0]["count"] = [anchor], len({each["test"] for each in marks})
    text += marks[0]


def claims(env: BuildEnvironment) -> dict[str, list[Claim]]:
    """Return the claims of the site: page to its claims, in reading order."""
    return {page: kept["claims"] for page, kept in env.metadata.items() if kept.get("claims")}


def sentence_before(node: mark) -> tuple[tuple[bool, str], ...]:
    """Return the sentence that *node* stands behind, as pieces: (whether it is code, text)."""
    siblings = node.parent.children[: node.parent.index(node)]
    while siblings and (isinstance(siblings[-1], mark) or not siblings[-1].astext().strip()):
        siblings.pop()  # marks of the same sentence
    before = [
        (any(sibling.findall(nodes.literal)), sibling.astext())
        for sibling in siblings
        if not isinstance(sibling, (mark, nodes.system_message))
    ]
    pieces: list[tuple[bool, str]] = []
    # The parser cuts text at every line end: only joined can it be searched for the last stop.
    for is_code, group in reversed([(k, list(g)) for k, g in groupby(before, itemgetter(0))]):
        text = re.sub(r"\s+", " ", "".join(text for _, text in group))
        if not pieces:
            text = text.rstrip()
        ends = [] if is_code else [match.end() for match in _END.finditer(text)]
        if ends:
            text = text[ends[-1] :]
        if text:
            pieces.insert(0, (is_code, text))
        if ends:
            break
    if pieces:
        pieces[0] = (pieces[0][0], pieces[0][1].lstrip())
    return tuple(pieces)


def entry_anchor(test: str) -> str:
    """Return the anchor of *test* on a page of ``proven``."""
    return nodes.make_id(test.removeprefix("tests/").replace(".py::", "-"))


def check_claims(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Warn of every claim whose test does not prove it."""
    found = [claim for each in claims(env).values() for claim in each]
    if not found:
        return []
    root = env.srcdir.parent
    try:
        run = runs.load(root)
    except runs.RunError as error:
        first = found[0]
        logger.warning(
            "%d claims: %s", len(found), error, location=(first.docname, first.line), type="claim"
        )
        return []
    for claim in found:
        try:
            runs.check(root, run, claim.test)
        except (proofs.UnknownTestError, runs.RunError) as error:
            logger.warning("claim: %s", error, location=(claim.docname, claim.line), type="claim")
    return []


def visit_html(self: HTML5Translator, node: mark) -> None:
    """Write the mark: a link to the first of its tests, which says how many there are."""
    builder = self.builder
    page = builder.get_relative_uri(builder.current_docname, f"{PAGE}/{builder.current_docname}")
    target = f' href="{escape(page)}#{entry_anchor(node["test"])}"'
    title = "1 test" if node["count"] == 1 else f"{node['count']} tests"
    quiet = 'tabindex="-1" aria-hidden="true"'
    self.body.append(
        f'<a class="claim" id="{node["ids"][0]}"{target} title="{title}" {quiet}>✓</a>'
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the mark, and what makes it of a note."""
    app.add_node(mark, html=(visit_html, None))
    app.add_transform(NotesToMarks)
    app.connect("doctree-read", collect)
    app.connect("env-updated", check_claims)
    app.add_js_file("proofs.js", loading_method="defer")
    return SAFE
