"""What the configuration and the templates of the site make of a page."""

import re
from itertools import pairwise

import pytest

from docs._ext.record import recordings
from tests.docs.conftest import ROOT, Site


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build a page with the project's own ``conf.py`` and return its HTML."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.write("examples/index/greeting.py", "print('Hello')\n")
    recordings.save(site.root, "index/greeting", ["Hello"])
    table = "| a | b |\n|---|---|\n| {py:func}`len` | c |\n"
    example = "```{example} index/greeting\n:output:\n```\n"
    toctree = "```{toctree}\n:caption: Pages\nother\n```\n"
    site.write("docs/index.md", f"# Home\n\n{table}\n## More\n\n{example}\n{toctree}")
    site.write("docs/other.md", "# Other\n")
    site.build_as_project()
    return site.html("index")


def test_nothing_is_loaded_from_elsewhere(page: str):
    """Scripts, styles and images come from the site itself."""
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"([^\"]*)\"", page)
    assert "_static/site.css" in {address.partition("?")[0] for address in loaded}
    assert [address for address in loaded if "//" in address] == []


def test_references_to_other_projects_are_links(page: str):
    """The committed inventories resolve the names of other projects."""
    assert 'href="https://docs.python.org/3/library/functions.html#len"' in page


def test_what_scrolls_can_be_reached_with_the_keyboard(page: str):
    """Blocks of code and tables are stops of the tab key."""
    assert page.count("<pre") == page.count('<pre tabindex="0">') == 2
    assert page.count("table-wrapper") == page.count('<div tabindex="0" class="table-wrapper') == 1


def test_sidebars_have_names(page: str):
    """A screen reader can tell the two sidebars apart, and the level of the headings in them."""
    labels = re.findall(r'<aside[^>]* aria-label="([^"]*)"', page)
    assert labels == ["Site", "This page"]
    assert page.count("<aside") == 2
    assert page.count('role="heading"') == page.count('role="heading" aria-level="2"') > 0


def test_no_head_of_a_table_is_empty():
    """Each column of each table says what stands in it, on the pages and in what is generated."""
    for page in (ROOT / "docs").rglob("*.md"):
        lines = page.read_text(encoding="utf-8").splitlines()
        heads = [line for line, below in pairwise(lines) if re.fullmatch(r"\|[-:| ]+\|", below)]
        assert [] == [head for head in heads if re.search(r"\|\s*\|", head)], page
    for module in (ROOT / "docs" / "_ext").rglob("*.py"):
        assert 'heads = [""' not in module.read_text(encoding="utf-8"), module
