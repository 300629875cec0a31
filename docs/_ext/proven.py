"""What is proven: every claim of the site with the test that proves it.

Each page with claims has a page here, ``proven/<page>``, with an entry for each test that it names:
what the test says it shows, the sentences with links back to them, where it passed, and its source.
The versions stand once, above. Beside it, ``proven/<page>.js`` holds the same for ``proofs.js``,
which opens it behind a sentence: a script, since a page opened as a file may fetch nothing.

The page ``proven``, with the directive of this name, lists these pages. All of it is made when the
pages have been written, in every build, since only then are all claims known. It is not searched.
"""

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from html import escape
from typing import Any

from docutils import nodes
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from . import SAFE
from .claims import PAGE, Claim, claims, entry_anchor
from .record import proofs, runs
from .record.words import enumerated

#: What an environment is made of, in the order of its fields.
HEADS = ("Database", "Python", "Django", "Channels", "asgiref")
# What Pygments marks most, and a reader does not miss; and the nothing that it begins with.
_PLAIN = re.compile(r'<span(?: class="(?:n|nn|nb|p|w|o|ow|mi|mf|bp|sa|si)")?>([^<]*)</span>')


_LEXER, _FORMATTER = PythonLexer(stripnl=False), HtmlFormatter()


class place(nodes.General, nodes.Element):  # noqa: N801 - docutils names nodes in lower case
    """Where the list goes."""


class Proven(SphinxDirective):
    """Note where the list goes."""

    def run(self) -> list[nodes.Node]:
        """Return the place of the list."""
        node = place("")
        self.set_source_info(node)
        return [node]


def write_again(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Return the page with the list, so that it is written in every build."""
    return [PAGE] if PAGE in env.found_docs else []


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the list of pages in its place."""
    for node in list(doctree.findall(place)):
        node.replace_self(list(summary(app, docname)))


def in_reading_order(env: BuildEnvironment) -> list[str]:
    """Return all pages: those of the table of contents in its order, then the others."""
    order = env.collect_relations()
    return [*order, *sorted(set(env.found_docs) - set(order))]


def recorded(app: Sphinx) -> runs.Run:
    """Return the recorded run; ``claims`` reports one that does not hold."""
    try:
        return runs.load(app.srcdir.parent)
    except runs.RunError:
        return runs.Run()


def summary(app: Sphinx, docname: str) -> Iterator[nodes.Node]:
    """Yield how much is proven, when and with what, and the pages that say it."""
    run = recorded(app)
    pages = {page: claims(app.env).get(page, []) for page in in_reading_order(app.env)}
    found = [claim for each in pages.values() for claim in each]
    if not found:
        yield nodes.paragraph("", "No page makes a claim yet.")
        return
    outcomes = [run.tests[test] for test in {each.test for each in found} if test in run.tests]
    days = sorted({each.recorded for each in outcomes})
    when = f" The record is of {' to '.join(dict.fromkeys((days[0], days[-1])))}." if days else ""
    yield nodes.paragraph("", f"{counted(found)}.{when}")
    if used := sorted({environment for each in outcomes for environment in each.passed}):
        yield nodes.raw("", environments(used), format="html")
    listing = nodes.bullet_list("")
    for page, of_page in pages.items():
        if of_page:
            to = app.builder.get_relative_uri(docname, f"{docname}/{page}")
            link = nodes.reference("", app.env.titles[page].astext(), internal=True, refuri=to)
            said = nodes.paragraph("", "", link, nodes.Text(f": {counted(of_page)}"))
            listing += nodes.list_item("", said)
    yield listing


def counted(found: list[Claim]) -> str:
    """Return how many sentences and tests *found* is."""
    sentences = {(each.docname, each.sentence) for each in found}
    return f"{plural(len(sentences), 'sentence')}, {plural(len({e.test for e in found}), 'test')}"


def plural(count: int, word: str) -> str:
    """Return *count* and *word*, with an ``s`` unless it is one."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def row(cells: Iterable[str]) -> nodes.row:
    """Return a row of a table."""
    return nodes.row("", *(nodes.entry("", nodes.paragraph("", cell)) for cell in cells))


def table(heads: Iterable[str], rows: Iterable[Iterable[str]], kind: str) -> nodes.table:
    """Return a table of the class *kind*."""
    head = row(heads)
    group = nodes.tgroup("", *(nodes.colspec("", colwidth=1) for _ in head), cols=len(head))
    group += [nodes.thead("", head), nodes.tbody("", *map(row, rows))]
    return nodes.table("", group, classes=[kind])


def environments(found: Iterable[runs.Environment]) -> str:
    """Return a table of versions, a row for each environment."""
    rows = ((e.database or "none", e.python, e.django, e.channels, e.asgiref) for e in found)
    body = "".join(f"<tr>{''.join(f'<td>{escape(x)}</td>' for x in each)}</tr>" for each in rows)
    head = "".join(f"<th>{each}</th>" for each in HEADS)
    table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    table = f'<table class="docutils proven-environments">{table}</table>'
    return f'<div class="table-wrapper">{table}</div>'


def pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield the page of each page with claims, and write its script."""
    run = recorded(app)
    for docname, found in claims(app.env).items():
        page = f"{PAGE}/{docname}"
        by_test: dict[str, list[Claim]] = {}
        for claim in found:
            by_test.setdefault(claim.test, []).append(claim)
        back, used = app.builder.get_relative_uri(page, docname), set()
        entries: dict[str, str] = {}
        body = ""
        for test, said in by_test.items():
            try:
                proof, outcome = runs.check(app.srcdir.parent, run, test)
            except (proofs.UnknownTestError, runs.RunError):
                continue  # an unproven claim is reported by claims.check_claims, and not listed
            used |= set(outcome.passed)
            first, *more = proof.docstring.split("\n\n")
            title = inline(first.rstrip(".") or test.rpartition("::")[2])
            text = "".join(f"<p>{inline(each)}</p>" for each in more)
            passing = f'<p class="proven-passed">Passed on {passed(outcome)}.</p>'
            where = f"<code>{escape(proof.path)}</code>, line {proof.line}"
            links = "".join(
                f'<li>{sentence(claim)} <a href="{back}#{claim.anchor}">Go there</a></li>'
                for claim in said
            )
            anchor = entry_anchor(test)
            entries[anchor] = (
                f"<details><summary>{title}</summary>{text}{passing}<p>{where}</p>"
                f"{highlighted(proof.source)}</details>"
            )
            body += (
                f'<section class="proven" id="{anchor}"><h2>{title}</h2>{text}'
                f'<ul class="proven-claims">{links}</ul>{passing}<details class="proven-source">'
                f"<summary>{where}</summary>{highlighted(proof.source)}</details></section>"
            )
        title, versions = escape(app.env.titles[docname].astext()), environments(sorted(used))
        head = f'<h1>Proven: {title}</h1><p><a href="{back}">{title}</a>: {counted(found)}.</p>'
        write_script(app, page, found, {"tests": entries, "versions": versions})
        yield page, {"title": f"Proven: {title}", "body": head + versions + body}, "page.html"


@cache
def highlighted(source: str) -> str:
    """Return *source* as HTML: once for all pages, most of the time goes into that."""
    return _PLAIN.sub(r"\1", highlight(source, _LEXER, _FORMATTER))


def write_script(app: Sphinx, page: str, found: list[Claim], data: dict[str, Any]) -> None:
    """Write what the marks of a page open: mark to its sentences, each with its tests."""
    marks: dict[str, dict[str, list[str]]] = {}
    for claim in found:
        tests = marks.setdefault(claim.anchor, {}).setdefault(sentence(claim), [])
        tests.append(entry_anchor(claim.test))
    path = app.outdir / f"{page}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"marks": marks, **data}, ensure_ascii=False)
    path.write_text(f"window.proofs = {text};\n", encoding="utf-8")


def sentence(claim: Claim) -> str:
    """Return the sentence of *claim* as HTML."""
    return "".join(code(text) if is_code else escape(text) for is_code, text in claim.sentence)


def code(text: str) -> str:
    """Return *text* as code in HTML."""
    return f'<code class="literal">{escape(text)}</code>'


def inline(text: str) -> str:
    """Return *text* of a docstring as HTML: what is in double backticks is code."""
    pieces = " ".join(text.split()).split("``")
    return "".join(code(p) if n % 2 else escape(p) for n, p in enumerate(pieces))


def passed(outcome: runs.Outcome) -> str:
    """Return where the test passed: databases, and the Pythons that they share."""
    databases: dict[str, dict[str, None]] = {}
    for each in sorted(outcome.passed):
        database, python, _ = each.kind
        databases.setdefault(database or "no database", {})[python] = None
    pythons: dict[str, list[str]] = {}
    for database, versions in databases.items():
        pythons.setdefault(enumerated(list(versions)), []).append(database)
    return "; ".join(f"{enumerated(on)}, with Python {with_}" for with_, on in pythons.items())


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directive."""
    app.add_node(place)
    app.add_directive("proven", Proven)
    app.connect("env-updated", write_again)
    app.connect("doctree-resolved", fill)
    app.connect("html-collect-pages", pages)
    return SAFE
