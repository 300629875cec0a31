"""The ``house`` directive draws the imports of the package; ``source`` quotes it by name."""

import re
from pathlib import Path

import pytest

from docs._ext import house
from tests.docs.conftest import EXTENSIONS, Site
from tests.support.package import HOUSE, MODULES, SOURCE, imported

PICTURE = "\n```{house}\n:caption: What stands on what\n```\n"
QUOTE = "\n```{source} core/cores.py\n:pyobject: f\n:start-at: b =\n```\n"


@pytest.fixture
def built(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a site with the directives of the house; all that is checked is checked there too."""
    monkeypatch.setattr("tests.docs.conftest.EXTENSIONS", [*EXTENSIONS, "house"])
    return site


def arrows(picture: str) -> list[tuple[str, str]]:
    """Return the arrows of *picture*: [(from, to)]."""
    return re.findall(r'<path [^>]*data-from="(\w+)" data-to="(\w+)"', picture)


def test_picture_has_an_arrow_for_each_import():
    """The picture has an arrow for each import between two wings, and every arrow points down."""
    found = house.imports(SOURCE)
    storeys = house.stack(house.rooms(SOURCE), found)
    drawn = arrows("".join(house.draw("", house.rooms(SOURCE), storeys, found)))
    wings = [(path.relative_to(SOURCE).parts[0], path) for path in MODULES]
    expected = {(wing, to) for wing, path in wings if wing in HOUSE for to in imported(path)}
    assert sorted(drawn) == sorted((of, to) for of, to in expected if of != to)
    assert storeys == HOUSE
    assert [(of, to) for of, to in drawn if storeys.index(of) <= storeys.index(to)] == []


def test_arrows_stay_in_the_picture():
    """However many wings are imported, no arrow is cut off at the right."""
    found = house.imports(SOURCE)
    rooms = house.rooms(SOURCE)
    picture = "".join(house.draw("", rooms, house.stack(rooms, found), found))
    assert 0 < max(int(x) for x in re.findall(r"H(\d+)", picture)) < house.WIDTH


def package(root: Path, **modules: str) -> None:
    """Make a package of folders with one module each."""
    for name, text in modules.items():
        (root / house.PACKAGE / name).mkdir(parents=True)
        (root / house.PACKAGE / name / "__init__.py").touch()
        (root / house.PACKAGE / name / f"{name}s.py").write_text(text)


def test_picture_without_a_caption_is_refused(built: Site):
    """It says what to write."""
    package(built.root, core="")
    built.add("docs/guide.md", PICTURE.replace(":caption: What stands on what\n", ""))
    (warning,) = built.build()
    assert "house: no caption; say with ':caption:' what it shows" in warning


def test_picture_is_told_in_words(built: Site):
    """Who does not see the picture is told its arrows."""
    package(built.root, core="", wing="from ..core.cores import x")
    built.add("docs/guide.md", PICTURE)
    assert built.build() == []
    assert "wing imports core.</desc>" in built.html("guide")
    assert arrows(built.html("guide")) == [("wing", "core")]


def test_circle_is_refused(built: Site):
    """Folders that import each other can't be drawn on top of each other."""
    package(built.root, core="", left="from ..right import rights", right="from .. import left")
    built.add("docs/guide.md", PICTURE)
    assert [each for each in built.build() if "circle" in each] == [
        "docs/guide.md:5: ERROR: house: a circle of imports is among left and right [docutils]"
    ]


def test_source_is_quoted_by_name(built: Site):
    """Lines are those of a function, from a text to a text; that counts as code that was run."""
    package(built.root, core="def f():\n    a = 1\n    b = 2\n    return a\n")
    built.add("docs/guide.md", QUOTE)
    assert built.build() == []
    assert built.code("guide") == ["b = 2\nreturn a\n"]


def test_source_that_is_gone_is_reported(built: Site):
    """A text that the module no longer has is reported where it is quoted."""
    package(built.root, core="def f():\n    return 1\n")
    built.add("docs/guide.md", QUOTE)
    (warning,) = built.build()
    assert "docs/guide.md:5: WARNING: " in warning
    assert "start-at pattern not found: b =" in warning


def test_source_is_never_quoted_by_numbers(built: Site):
    """Numbers of lines are refused: they move."""
    package(built.root, core="b = 2\n")
    built.add("docs/guide.md", "\n```{source} core/cores.py\n:lines: 1\n```\n")
    (warning,) = built.build()
    assert "lines" in warning
