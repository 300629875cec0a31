"""The navigation beside each page: every page once, below its index, and no headings."""

import posixpath
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.docs.conftest import ROOT

ENTRY = re.compile(r'<li class="toctree-l(\d)([^"]*)"><a class="[^"]*" href="([^"]*)">')
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def listed(page: str = "index", level: int = 1) -> list[tuple[int, str]]:
    """Return the pages that the toctrees of *page* list, with those below them, and how deep."""
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    found: list[tuple[int, str]] = []
    for block in TOCTREE.findall(text):
        for line in filter(None, block.splitlines()):
            if not line.startswith(":"):
                name = re.sub(r".*<(.*)>", r"\1", line)
                name = posixpath.normpath(posixpath.join(posixpath.dirname(page), name))
                found += [(level, name), *listed(name, level + 1)]
    return found


def beside(site: Path, page: str) -> list[tuple[int, str, bool]]:
    """Return the entries beside *page*: how deep, which page, and whether it is marked."""
    html = (site / f"{page}.html").read_text(encoding="utf-8")
    tree = html.partition('<div class="sidebar-tree">')[2].partition("</aside>")[0]
    found = []
    for level, classes, href in ENTRY.findall(tree):
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), href))
        name = page if href == "#" else path.removesuffix(".html")
        found.append((int(level), name, "current-page" in classes))
    assert tree.count("<a ") == len(found)
    return found


@pytest.mark.parametrize("page", ["index", *(name for _, name in listed())])
def test_each_page_is_listed_once(whole_site: Path, page: str):
    """The side bar has the pages of the toctrees, in their order, and marks the one that is open.

    A heading of a page would be one more, with a ``#`` behind its name.
    """
    found = beside(whole_site, page)
    assert [(level, name) for level, name, _ in found] == listed()
    assert [name for _, name, marked in found if marked] == [page] * (page != "index")


def test_indexes_have_their_pages_below(whole_site: Path):
    """How to and the reference are one entry each, with their pages below; no others are."""
    names = listed()
    assert len(names) == len(dict.fromkeys(name for _, name in names)) > 40
    below = {name.partition("/")[0] for level, name in names if level == 2}
    assert below == {"howto", "reference"}
    written = {each.stem for each in (ROOT / "docs/howto").glob("*.md")} - {"index"}
    assert {f"howto/{each}" for each in written} <= {name for level, name in names if level == 2}


@pytest.mark.parametrize("page", ["install", "howto/celery", "changelog"])
def test_open_page_is_in_sight(browser: Browser, address: str, page: str):
    """Wherever in the list the open page stands, it is to be seen as the page opens."""
    window = browser.new_page(viewport={"width": 1280, "height": 800})
    window.goto(f"{address}/{page}.html")
    expect(window.locator(".sidebar-tree .current-page")).to_be_in_viewport(ratio=1)
    assert window.evaluate("() => scrollY") == 0
    window.close()


def test_link_leads_to_its_place_at_once(browser: Browser, address: str):
    """The page does not run past fifty screens to get there, as the theme has it."""
    window = browser.new_page(viewport={"width": 1280, "height": 800})
    window.goto(f"{address}/reference/messages.html#pool-full")
    how = window.evaluate("() => getComputedStyle(document.documentElement).scrollBehavior")
    assert how == "auto"
    window.close()
