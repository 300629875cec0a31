"""The ``proven`` directive: every claim of the site with the test that proves it.

An entry is a test that at least one sentence names: what the test says it shows, the sentences
with links back to them, the test's source, and the databases it passed on. Entries follow the pages
in the order of the table of contents; a test that several pages name has one entry, at the first.

One page of the site has the directive. Its list is built when pages are written, since only then
are all claims known, and it is written again in every build.
"""

from collections.abc import Iterable
from dataclasses import astuple
from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from .claims import Claim, claims, entry_anchor
from .examples import literal
from .record import proofs, runs

logger = logging.getLogger(__name__)

#: What an environment is made of, in the order of its fields.
HEADS = ("Database", "Python", "Django", "Channels", "asgiref")


class place(nodes.General, nodes.Element):  # noqa: N801 - docutils names nodes in lower case
    """Where the list goes."""


class Proven(SphinxDirective):
    """Note where the list goes."""

    def run(self) -> list[nodes.Node]:
        """Return the place of the list."""
        node = place("")
        self.set_source_info(node)
        return [node]


def note_page(app: Sphinx, doctree: nodes.document) -> None:
    """Remember which page has the directive."""
    if next(iter(doctree.findall(place)), None) is not None:
        app.env.proven_page = app.env.current_document.docname  # type: ignore[attr-defined]


def merge(app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
    """Take over the page from another process of a parallel build."""
    if (page := getattr(other, "proven_page", None)) in docnames:
        env.proven_page = page  # type: ignore[attr-defined]


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget the page."""
    if getattr(env, "proven_page", None) == docname:
        del env.proven_page


def write_again(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Return the page with the list, so that it is written in every build."""
    page = getattr(env, "proven_page", None)
    if page is None:
        first = next((claim for found in claims(env).values() for claim in found), None)
        if first is not None:
            logger.warning(
                "claims link nowhere: no page has the 'proven' directive; put it on one",
                location=(first.docname, first.line),
                type="claim",
            )
        return []
    return [page]


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the list in its place."""
    for node in list(doctree.findall(place)):
        node.replace_self(build(app, docname))


def build(app: Sphinx, docname: str) -> list[nodes.Node]:
    """Return the summary and a section for each page with claims."""
    env, root = app.env, app.srcdir.parent
    by_test: dict[str, list[Claim]] = {}
    for page in in_reading_order(env):
        for claim in claims(env).get(page, []):
            by_test.setdefault(claim.test, []).append(claim)
    try:
        run = runs.load(root)
    except runs.RunError:
        run = runs.Run()  # claims.check_claims reports it
    result: list[nodes.Node] = list(summary(run, by_test))
    section: nodes.section | None = None
    page = ""
    for test, found in by_test.items():
        try:
            proof, outcome = runs.check(root, run, test)
        except (proofs.UnknownTestError, runs.RunError):
            continue  # an unproven claim is reported by claims.check_claims; it is not listed here
        if section is None or found[0].docname != page:
            page = found[0].docname
            section = nodes.section("", ids=[nodes.make_id(f"proven-{page}")])
            section += nodes.title("", env.titles[page].astext())
            result.append(section)
        section += entry(app, docname, proof, outcome, found)
    return result


def in_reading_order(env: BuildEnvironment) -> list[str]:
    """Return all pages: those of the table of contents in its order, then the others."""
    order: dict[str, None] = {}

    def walk(page: str) -> None:
        if page not in order:
            order[page] = None
            for child in env.toctree_includes.get(page, []):
                walk(child)

    walk(env.config.root_doc)
    return [*order, *sorted(set(env.found_docs) - set(order))]


def summary(run: runs.Run, by_test: dict[str, list[Claim]]) -> Iterable[nodes.Node]:
    """Yield how much is proven, when and with what."""
    if not by_test:
        yield nodes.paragraph("", "No page makes a claim yet.")
        return
    sentences = {(each.docname, each.sentence) for found in by_test.values() for each in found}
    outcomes = [run.tests[test] for test in by_test if test in run.tests]
    days = sorted({each.recorded for each in outcomes})
    used = sorted({environment for each in outcomes for environment in each.passed})
    when = f" The record is of {' to '.join(dict.fromkeys((days[0], days[-1])))}." if days else ""
    said = (
        f"{plural(len(sentences), 'sentence')} of this site, {plural(len(by_test), 'test')}.{when}"
    )
    yield nodes.paragraph("", said)
    if used:
        yield environments(used)


def plural(count: int, word: str) -> str:
    """Return *count* and *word*, with an ``s`` unless it is one."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def environments(found: list[runs.Environment]) -> nodes.table:
    """Return a table of versions, a row for each environment."""
    group = nodes.tgroup("", *(nodes.colspec("", colwidth=1) for _ in HEADS), cols=len(HEADS))
    group += nodes.thead("", row(HEADS))
    group += nodes.tbody(
        "", *(row((e.database or "none", e.python, e.django, e.channels, e.asgiref)) for e in found)
    )
    return nodes.table("", group, classes=["proven-environments"])


def row(cells: Iterable[str]) -> nodes.row:
    """Return a row of a table."""
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", cell)) for cell in cells))


def entry(
    app: Sphinx, docname: str, proof: proofs.Proof, outcome: runs.Outcome, found: list[Claim]
) -> nodes.section:
    """Return the section of one test."""
    section = nodes.section("", ids=[entry_anchor(proof.test)], classes=["proven"])
    first, *more = proof.docstring.split("\n\n")
    section += nodes.title("", "", *inline(first.rstrip(".") or proof.test.rpartition("::")[2]))
    for text in more:
        section += nodes.paragraph("", "", *inline(text))
    listing = nodes.bullet_list("", classes=["proven-claims"])
    for claim in found:
        page = app.builder.get_relative_uri(docname, claim.docname)
        back = nodes.reference(
            "",
            app.env.titles[claim.docname].astext(),
            internal=True,
            refuri=f"{page}#{claim.anchor}",
        )
        said = nodes.inline("", classes=["proven-sentence"])
        said += [
            nodes.literal("", text) if is_code else nodes.Text(text)
            for is_code, text in claim.sentence
        ]
        listing += nodes.list_item("", nodes.paragraph("", "", said, nodes.Text(" "), back))
    section += listing
    section += nodes.paragraph("", f"Passed on {passed(outcome)}.", classes=["proven-passed"])
    summary = f"<code>{escape(proof.path)}</code>, line {proof.line}"
    section += nodes.raw(
        "", f'<details class="proven-source"><summary>{summary}</summary>', format="html"
    )
    section += literal(proof.source, "python")
    section += nodes.raw("", "</details>", format="html")
    return section


def inline(text: str) -> list[nodes.Node]:
    """Return *text* of a docstring as nodes: what is in double backticks is code."""
    pieces = " ".join(text.split()).split("``")
    return [
        nodes.literal("", piece) if number % 2 else nodes.Text(piece)
        for number, piece in enumerate(pieces)
        if piece
    ]


def passed(outcome: runs.Outcome) -> str:
    """Return where the test passed: databases, and the versions that they share."""
    databases: dict[str, list[str]] = {}
    for each in sorted(outcome.passed):
        versions = [
            f"{name} {version}"
            for name, version in zip(HEADS[1:], astuple(each)[1:], strict=True)
            if version
        ]
        databases.setdefault(enumerated(versions), []).append(each.database or "no database")
    return "; ".join(f"{enumerated(names)}, with {with_}" for with_, names in databases.items())


def enumerated(words: list[str]) -> str:
    """Return *words* as in a sentence: ``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive."""
    app.add_node(place)
    app.add_directive("proven", Proven)
    app.connect("doctree-read", note_page)
    app.connect("env-merge-info", merge)
    app.connect("env-purge-doc", purge)
    app.connect("env-updated", write_again)
    app.connect("doctree-resolved", fill)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
