"""The search of the site: its sections, and what people call them.

Writes ``sections.js``, which ``docs/_static/search.js`` ranks: each section with its title, its
text, and its other names. These stand in the page, where nobody sees them, between semicolons::

    ## How many connections

    % search: connection limit reached; pool size

or, for a whole page, as ``search:`` in its front matter. On the page of messages, what a list of
the class ``wordings`` has in back quotes is printed as the heading is: a line of a log that
contains it leads there.

What is proven is left out, of Sphinx's own index as well, and what is about the project comes late.
"""

import json
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.typing import ExtensionMetadata

_LEFT_OUT, _MESSAGES, _NAMES = "proven", "reference/messages", "search:"
#: What readers rarely look for, and how much less a match counts there.
_WEIGHTS = {"reference/api": 0.7} | dict.fromkeys(
    ("architecture", "benchmarks", "changelog", "contributing", "reliability"), 0.5
)
_UNNAMED = re.compile(r"id\d+")
_DRAWN = re.compile(r"<(svg|div|form)\b.*?</\1>")
_UNSEEN = (nodes.section, nodes.title, nodes.Invisible, nodes.system_message)


def collect(app: Sphinx, doctree: nodes.document) -> None:
    """Keep the sections of the page just read; a name of the API is one, too."""
    docname = app.env.current_document.docname
    if docname.startswith(_LEFT_OUT):
        app.env.metadata[docname]["no-search"] = "true"
        return
    found = [
        {"page": docname, "weight": _WEIGHTS.get(docname, 1), **described(node)}
        for node in doctree.findall(lambda each: isinstance(each, (nodes.section, addnodes.desc)))
    ]
    for each in found:
        each["messages"] = each["anchor"] != "" and docname == _MESSAGES
    if found:
        found[0]["names"] += names(str(app.env.metadata[docname].get("search", "")))
    sections(app.env)[docname] = found


def described(node: nodes.Element) -> dict[str, Any]:
    """Return what is known of a section, or of a name of the API."""
    own = [each for each in node.children if not isinstance(each, _UNSEEN)]
    known: dict[str, Any] = {
        "names": [name for each in node.children for name in names_in(each)],
        "wordings": [
            code.astext()
            for each in own
            if isinstance(each, nodes.Element) and "wordings" in each.get("classes", ())
            for code in each.findall(nodes.literal)
        ],
        # Of an example what it printed: its code has too many words that mean nothing.
        "text": _DRAWN.sub("", " ".join(" ".join(shown(each).astext().split()) for each in own)),
    }
    if isinstance(node, addnodes.desc):
        return known | {"title": node[0].get("fullname", ""), "anchor": "".join(node[0]["ids"][:1])}
    # The last id is the one that the page itself gives, where it does.
    ids = [each for each in reversed(node["ids"]) if not _UNNAMED.fullmatch(each)]
    is_page = isinstance(node.parent, nodes.document)
    return known | {"title": node[0].astext(), "anchor": "" if is_page else ids[0]}


def shown(node: nodes.Node) -> nodes.Node:
    """Return the part of *node* that is searched."""
    return node[-1] if isinstance(node, nodes.Element) and "example" in node else node


def names_in(node: nodes.Node) -> list[str]:
    """Return the names in a comment of the page."""
    text = node.astext() if isinstance(node, nodes.comment) else ""
    return names(text.removeprefix(_NAMES)) if text.startswith(_NAMES) else []


def names(text: str) -> list[str]:
    """Return what stands between semicolons."""
    return [" ".join(name.split()) for name in text.split(";") if name.strip()]


def sections(env: BuildEnvironment) -> dict[str, list[dict[str, Any]]]:
    """Return the sections of the site: page to its sections."""
    if not hasattr(env, "sections"):
        env.sections = {}  # type: ignore[attr-defined]
    return env.sections  # type: ignore[attr-defined, no-any-return]


def purge(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Forget a page."""
    sections(env).pop(docname, None)


def merge(app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
    """Take over what another process of a parallel build read."""
    sections(env).update(
        {name: found for name, found in sections(other).items() if name in docnames}
    )


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the sections where the page of the search looks for them."""
    if error is None and app.builder.format == "html":
        found = [each for _, page in sorted(sections(app.env).items()) for each in page]
        text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
        Path(app.outdir, "sections.js").write_text(f"const sections = {text};\n", encoding="utf-8")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Collect as pages are read, write when all is built."""
    app.connect("doctree-read", collect)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("build-finished", write)
    return {
        "version": "1",
        "env_version": 1,
        "parallel_read_safe": True,
        "parallel_write_safe": True,
    }
