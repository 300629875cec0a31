"""The ``house`` and ``source`` directives: the package as it is, drawn and quoted.

::

    ```{house}
    :caption: What stands on what
    ```

draws each folder of ``src/ormbridge`` as a box with its modules, on top of those that it imports,
and an arrow for each import between two of them. All of it is read from the source.

::

    ```{source} core/pool.py
    :pyobject: Pool.take
    :start-at: with self._lock
    ```

shows lines of a module, as ``literalinclude`` does, but never by their numbers: those move.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.directives.code import LiteralInclude
from sphinx.util.docutils import SphinxDirective
from sphinx.util.typing import ExtensionMetadata

from . import SAFE
from .record.words import enumerated

PACKAGE = "src/ormbridge"
# Units of the picture: its width, that of a box, and the room for lines of text and for arrows.
WIDTH, BOX, NAME, LINE, GAP, RAIL, STEP = 360, 284, 17, 14, 10, 12, 9
#: Letters in a line of modules.
LETTERS = 46


class House(SphinxDirective):
    """Draw the folders of the package and the imports between them."""

    option_spec: ClassVar[dict[str, Callable[[str], Any]] | None] = {
        "caption": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Return the figure."""
        self.env.note_reread()  # a module may come or go
        package = self.env.srcdir.parent / PACKAGE
        modules, found = rooms(package), imports(package)
        try:
            storeys = stack(modules, found)
        except ValueError as error:
            raise self.error(f"house: {error}") from error
        if "caption" not in self.options:
            raise self.error("house: no caption; say with ':caption:' what it shows")
        figure = nodes.container("", classes=["timeline"])
        text = self.options["caption"]
        caption = nodes.paragraph("", "", classes=["timeline-caption"])
        caption += self.parse_inline(text, lineno=self.lineno)[0]
        picture = "".join(draw(caption.astext(), modules, storeys, found))
        figure += [caption, nodes.raw("", picture, format="html")]
        return [figure]


class Source(LiteralInclude):
    """Show lines of a module of the package, which all tests run."""

    option_spec: ClassVar[dict[str, Callable[[str], Any]]] = {
        name: LiteralInclude.option_spec[name]
        for name in ("pyobject", "start-at", "end-at", "end-before")
    }

    def run(self) -> list[nodes.Node]:
        """Return the block of code, or a warning if the lines are not there."""
        self.arguments[0] = f"/../{PACKAGE}/{self.arguments[0]}"
        self.options |= {"language": "python", "dedent": None}
        shown = super().run()
        for node in shown:
            if isinstance(node, nodes.literal_block):
                node["from_a_file"] = True
        return shown


def rooms(package: Path) -> dict[str, list[str]]:
    """Return the folders of *package*, each with the names of its modules."""
    return {
        each.name: sorted(path.stem for path in each.glob("[!_]*.py"))
        for each in sorted(package.iterdir())
        if (each / "__init__.py").exists()
    }


def imports(package: Path) -> set[tuple[str, str]]:
    """Return which folder imports from which other one: {(from, to)}."""
    found = set()
    for path in package.glob("*/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                found |= {(path.parent.name, name.split(".")[0]) for name in names}
    return found


def stack(folders: Iterable[str], found: set[tuple[str, str]]) -> list[str]:
    """Return *folders* so that each stands on those that it imports, which come first.

    :raises ValueError: if some import each other.
    """
    storeys: list[str] = []
    left = sorted(folders)
    while left:
        free = (each for each in left if not {to for of, to in found if of == each} & {*left})
        if (lowest := next(free, None)) is None:
            raise ValueError(f"a circle of imports is among {enumerated(left)}")
        storeys.append(lowest)
        left.remove(lowest)
    return storeys


def draw(
    caption: str, modules: dict[str, list[str]], storeys: list[str], found: set[tuple[str, str]]
) -> Iterator[str]:
    """Yield the picture: a box for each folder, the lowest last, and the arrows beside them."""
    targets = [each for each in storeys if any(to == each for _, to in found)]
    lines = {each: textwrap.wrap(", ".join(modules[each]), LETTERS) for each in storeys}
    boxes: dict[str, tuple[int, int]] = {}
    bottom = 1
    for each in reversed(storeys):
        height = max(NAME + LINE * len(lines[each]) + GAP, STEP * (len(targets) + 2))
        boxes[each] = bottom, height
        bottom += height + GAP
    told = "; ".join(
        f"{each} imports {enumerated([to for to in targets if (each, to) in found])}"
        for each in reversed(storeys)
        if any(of == each for of, _ in found)
    )
    yield (
        f'<svg class="house-picture" role="img" viewBox="0 0 {WIDTH} {bottom - GAP + 1}" '
        'aria-labelledby="house-title" aria-describedby="house-description">'
        f'<title id="house-title">{escape(caption)}</title>'
        f'<desc id="house-description">{escape(told)}.</desc>'
    )
    for each, (top, height) in boxes.items():
        colour = f" timeline-colour-{targets.index(each)}" if each in targets else ""
        yield f'<g class="house-wing{colour}">'
        yield f'<rect x="1" y="{top}" width="{BOX - 1}" height="{height}" rx="3"/>'
        yield f'<text class="house-name" x="9" y="{top + NAME}">{escape(each)}</text>'
        for i, line in enumerate(lines[each], start=1):
            yield f'<text x="9" y="{top + NAME + LINE * i}">{escape(line)}</text>'
        yield "</g>"
    for of, to in sorted(found):
        # The lower the target, the further out its arrows, which so never cross on their way in.
        lane = len(targets) - targets.index(to)
        start = boxes[of][0] + STEP * lane
        end = boxes[to][0] + boxes[to][1] - STEP
        yield (
            f'<path class="house-arrow timeline-colour-{targets.index(to)}" data-from="{of}" '
            f'data-to="{to}" d="M{BOX} {start}H{BOX + 8 + RAIL * lane}V{end}H{BOX + 2}'
            f'm5 -4l-5 4l5 4"><title>{of} imports {to}</title></path>'
        )
    yield "</svg>"


def under_its_name(
    app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]
) -> None:
    """Give a function that is a class by another name the docstring of the class."""
    if what == "function" and isinstance(documented, type):
        lines[:] = [*(inspect.getdoc(documented) or "").splitlines(), ""]


def for_people(app: Sphinx, domain: str, what: str, content: addnodes.desc_content) -> None:
    """Take the parameters of types out of a signature: a caller writes none."""
    for each in [*content.parent.findall(addnodes.desc_type_parameter_list)]:
        each.parent.remove(each)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the directives, and see to the reference."""
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("object-description-transform", for_people, priority=900)
    app.connect("autodoc-process-docstring", under_its_name, priority=100)
    app.add_directive("house", House)
    app.add_directive("source", Source)
    return SAFE
