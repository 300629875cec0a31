"""Every page, visited once: what axe finds, what it asks for, how wide it is, on paper too."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, Page

from tests.docs.conftest import ROOT

#: One of each kind of page, looked at in both schemes and at both widths.
KINDS = [
    *("index", "start", "install", "guide/migrating", "howto/celery", "benchmarks", "changelog"),
    *("reference/messages", "reference/api", "proven", "proven/guide/migrating", "genindex", "404"),
    *("search.html?q=pgbouncer", "search.html?q=qqqqzzzz"),
]
SOURCES = (path.relative_to(ROOT / "docs") for path in sorted((ROOT / "docs").rglob("*.md")))
WRITTEN = [each.with_suffix("").as_posix() for each in SOURCES if each.parts[0][0] != "_"]
WIDTHS, SCHEMES = (390, 1280), ("light", "dark")
#: Rules that ask for one thing of a text, its colours, are asked of one text of each kind: all
#: with the same colours, size and weight on the same ground pass together.
ONE_OF_EACH = """() => {
    const ground = (each) => {
        const { backgroundColor, backgroundImage } = getComputedStyle(each);
        const seen = backgroundColor !== "rgba(0, 0, 0, 0)" || backgroundImage !== "none";
        return seen || !each.parentElement
            ? backgroundColor + backgroundImage : ground(each.parentElement);
    };
    const found = new Map();
    for (const each of document.querySelectorAll("body *")) {
        const text = [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!text || !each.checkVisibility()) continue;
        const { color, fontSize, fontWeight, opacity } = getComputedStyle(each);
        const kind = [color, fontSize, fontWeight, opacity, ground(each)].join();
        if (!found.has(kind)) found.set(kind, each);
    }
    return axe.run([...found.values()], { runOnly: ["color-contrast"] });
}"""
ALL_OTHERS = "() => axe.run({ rules: { 'color-contrast': { enabled: false } } })"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open a window that has axe in it."""
    page = browser.new_page()
    page.add_init_script(Path(AXE_FILE_PATH).read_text(encoding="utf-8"))
    yield page
    page.close()


def findings(page: Page, how: str) -> list[str]:
    """Return what axe finds, with the first place of each."""
    found = page.evaluate(f"async () => (await ({how})()).violations")
    return [f"{each['id']}: {each['help']}: {each['nodes'][0]['html']}" for each in found]


@pytest.mark.parametrize("name", [*KINDS, *(each for each in WRITTEN if each not in KINDS)])
def test_page_is_for_everybody(page: Page, address: str, name: str, record_property):
    """axe has no finding, nothing sticks out, and nothing is asked of another server."""
    asked: set[str] = set()
    page.on("request", lambda request: asked.add(request.url))
    page.goto(f"{address}/{name if '.html' in name else name + '.html'}")
    if "?" in name:
        page.wait_for_selector("#search-results .search-summary", state="attached")
    page.evaluate("() => document.querySelectorAll('details').forEach((x) => (x.open = true))")
    found = []
    for width in WIDTHS if name in KINDS else WIDTHS[-1:]:
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        found += findings(page, ALL_OTHERS)
        for scheme in SCHEMES if name in KINDS else ():
            page.emulate_media(color_scheme=scheme)
            found += [f"{scheme}, {width} px: {each}" for each in findings(page, ONE_OF_EACH)]
    assert found == []
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    record_property("page", name)
