"""The search of the site: its sections, and what people call them.

Writes ``sections.js``, which ``docs/_static/search.js`` ranks: each section with its title, its
text, and its other names. These stand in the page, where nobody sees them, between semicolons::

    ## How many connections

    % search: connection limit reached; pool size

or, for a whole page, as ``search:`` in its front matter. What a program prints stands behind
``% prints:``, or in back quotes in a container of the class ``wordings``: a line of a log that
contains it leads to this section. On the page of messages each heading is such a message.

What is proven is left out, of Sphinx's own index as well, and what is about the project comes late.

It also sees to the navigation beside each page, which is made of titles alone.
"""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import ExtensionMetadata

from . import SAFE
from .claims import PAGE

_MESSAGES = "reference/messages"
#: What readers rarely look for, and how much less a match counts there.
_WEIGHTS = {"reference/api": 0.7, _MESSAGES: 0.8} | dict.fromkeys(
    ("architecture", "benchmarks", "changelog", "contributing"), 0.5
)
_CODE = re.compile(r"\[[a-z-]+\]")
_UNNAMED = re.compile(r"id\d+")
_DRAWN = re.compile(r"<(svg|div|form)\b.*?</\1>")
_UNSEEN = (nodes.section, nodes.title, nodes.Invisible, nodes.system_message)


def hide(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Keep what is proven out of Sphinx's index."""
    for docname in env.all_docs:
        if docname.startswith(PAGE):
            env.metadata[docname]["no-search"] = "true"
    return []


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Keep the sections of the page just read."""
    docname = app.env.current_document.docname
    place: dict[str, Any] = {"page": docname, "weight": _WEIGHTS.get(docname, 1)}
    kept = app.env.metadata[docname]
    kept["sections"] = known = [place | described(each) for each in doctree.findall(is_found)]
    for each in known[:1]:
        each["is_page"] = True
        each["names"] += parts(str(kept.get("search", "")))
    for each in known if docname == _MESSAGES else ():
        if each["names"]:
            each["prints"].append(each["title"])
        else:  # what is around the messages
            each["weight"] = 0.4


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the sections where the page of the search looks for them."""
    if error is not None or app.builder.format != "html":
        return
    pages = sorted(each for each in app.env.all_docs if not each.startswith(PAGE))
    found = [section for each in pages for section in app.env.metadata[each]["sections"]]
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    Path(app.outdir, "sections.js").write_text(f"const sections = {text};\n", encoding="utf-8")


def quicken(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: object) -> None:
    """Have the navigation, which is made before Furo asks, of the titles alone.

    Sphinx copies each heading of all pages for it, on each page: a fifth of the whole build.
    """
    whole, make = app.env.tocs, context["toctree"]

    def toctree(**options: Any) -> str:
        app.env.tocs = {each: title_of(toc) for each, toc in whole.items()}
        try:
            return str(make(**options))
        finally:
            app.env.tocs = whole

    context["toctree"] = toctree


@cache
def title_of(toc: nodes.bullet_list) -> nodes.bullet_list:
    """Return the title in *toc*, with the pages below it and without the headings."""
    found = toc.deepcopy()
    for item in found:
        below = list(item.findall(addnodes.toctree))
        item[1:] = [nodes.bullet_list("", *below)] if below else []
    return found


def is_found(node: nodes.Node) -> bool:
    """Say whether *node* is a section, or a name of the API that can be linked to."""
    return isinstance(node, nodes.section) or (
        isinstance(node, addnodes.desc) and bool(node[0]["ids"])
    )


def described(node: nodes.Element) -> dict[str, Any]:
    """Return what is known of a section, or of a name of the API."""
    own = [each for each in node.children if not isinstance(each, _UNSEEN)]
    comments = [each.astext() for each in node.children if isinstance(each, nodes.comment)]
    boxes = [each for each in own if isinstance(each, nodes.container)]
    wordings = [each for each in boxes if "wordings" in each["classes"]]
    text = [each for each in own if each not in wordings]
    quoted = [each.astext() for box in wordings for each in box.findall(nodes.literal)]
    # A code of the bridge is a name: as a message, one word of it would outweigh a whole line.
    codes = [each for each in quoted if _CODE.fullmatch(each)]
    known: dict[str, Any] = {
        "names": [name for each in comments for name in parts(each, "search:")] + codes,
        "prints": [text for each in comments for text in parts(each, "prints:")]
        + [each for each in quoted if each not in codes],
        # Of an example what it printed: its code has too many words that mean nothing.
        "text": _DRAWN.sub("", " ".join(" ".join(shown(each).astext().split()) for each in text)),
    }
    if isinstance(node, addnodes.desc):
        return known | {"title": node[0].get("fullname", ""), "anchor": node[0]["ids"][0]}
    # The first id is the one that the page itself gives, where it does.
    ids = [each for each in node["ids"] if not _UNNAMED.fullmatch(each)]
    return known | {"title": node[0].astext(), "anchor": ids[0]}


def shown(node: nodes.Node) -> nodes.Node:
    """Return the part of *node* that is searched."""
    return node[-1] if isinstance(node, nodes.Element) and "example" in node else node


def parts(text: str, begins: str = "") -> list[str]:
    """Return what stands between semicolons in *text*, if that begins so."""
    found = text.removeprefix(begins).split(";") if text.startswith(begins) else []
    return [" ".join(each.split()) for each in found if each.strip()]


def setup(app: Sphinx) -> ExtensionMetadata:
    """Keep what is read, and write when all is built."""
    app.add_css_file("search.css")
    app.connect("env-updated", hide)
    app.connect("doctree-read", collect, priority=900)
    app.connect("html-page-context", quicken, priority=400)  # Furo asks at 500
    app.connect("build-finished", write)
    return SAFE
