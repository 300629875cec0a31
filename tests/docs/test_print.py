"""The pages on paper: no marks, nothing to click, nothing beside the text, and nothing cut."""

from typing import Any

import pytest
from playwright.sync_api import Browser

#: What is of use on a screen only.
SCREEN = (
    "a.claim, .proofs, .show-the-tests, .copybtn, .headerlink, .unfold, .skip-to-content,"
    " .sidebar-drawer, .toc-drawer, .mobile-header, .content-icon-container, .related-pages"
)
PRINTED = """(screen) => {
    const seen = (each) => each.checkVisibility() && each.getBoundingClientRect().width > 0;
    const all = (selector) => [...document.querySelectorAll(selector)].filter(seen);
    const level = (colour) => {
        const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((each) => {
            const part = each / 255;
            return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
    };
    const fixed = (each) => getComputedStyle(each).position === "fixed";
    const pale = (each) => 1.05 / (level(getComputedStyle(each).color) + 0.05) < 4.5;
    const hidden = (each) => !getComputedStyle(each, "::after").content.includes("http");
    return {
        "of the screen": all(screen).map((each) => each.outerHTML.slice(0, 80)),
        "on each sheet": all("body *").filter(fixed).map((each) => each.outerHTML.slice(0, 80)),
        cut: all("pre, .table-wrapper")
            .filter((each) => each.scrollWidth > each.clientWidth + 1)
            .map((each) => each.innerText.slice(0, 80)),
        pale: all("article a, article p, article pre span").filter(pale).map((x) => x.innerText),
        "without its address": all("article p > a.external")
            .filter((each) => !each.closest("dl, table") && hidden(each))
            .map((each) => each.href),
        wide: document.documentElement.scrollWidth,
    };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["guide/transactions", "howto/celery", "reference/api"])
def test_printed_page(browser: Browser, address: str, name: str, scheme: Any):
    """On a sheet of A4 the text stands alone, links are readable, and no line goes over the edge.

    A reader of the dark site gets the same: dark letters on white.
    """
    page = browser.new_page(viewport={"width": 718, "height": 1000}, color_scheme=scheme)
    page.goto(f"{address}/{name}.html")
    page.emulate_media(media="print")
    printed = page.evaluate(PRINTED, SCREEN)
    page.close()
    assert printed.pop("wide") == 718
    assert {what: found for what, found in printed.items() if found} == {}
