"""Every page, visited once: what axe finds, what it asks for, how wide it is, on paper too."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, Page

from tests.docs.conftest import ROOT

#: Pages that no source has, and two of those that are made alike.
MADE = [
    *("404", "genindex", "search", "search.html?q=pgbouncer", "search.html?q=qqqqzzzz"),
    *("proven/guide/asgi", "proven/index"),
]
SOURCES = (path.relative_to(ROOT / "docs") for path in sorted((ROOT / "docs").rglob("*.md")))
PAGES = [*(each.with_suffix("").as_posix() for each in SOURCES if each.parts[0][0] != "_"), *MADE]
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


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize("name", PAGES)
def test_page_is_for_everybody(page: Page, address: str, name: str, record_property):
    """axe has no finding in both schemes at both widths; nothing is asked of another server."""
    asked: set[str] = set()
    note = lambda request: asked.add(request.url)  # noqa: E731
    page.on("request", note)
    page.goto(f"{address}/{name if '.html' in name else name + '.html'}")
    if "?" in name:
        page.wait_for_selector("#search-results .search-summary", state="attached")
    page.evaluate("() => document.querySelectorAll('details').forEach((x) => (x.open = true))")
    found = []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        found += findings(page, ALL_OTHERS)
        for scheme in SCHEMES:
            page.emulate_media(color_scheme=scheme)
            found += [f"{scheme}: {each}" for each in findings(page, ONE_OF_EACH)]
    page.remove_listener("request", note)
    assert found == []
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    record_property("visited", name)
