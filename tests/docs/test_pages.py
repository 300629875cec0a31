"""The pages as a reader meets them: how long they are, what is folded, what stands beside them."""

from collections.abc import Iterator
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.docs.conftest import ROOT


def pages(folder: str) -> list[str]:
    """Return the names of the pages in a folder of the documentation."""
    return sorted(f"{folder}/{path.stem}" for path in (ROOT / "docs" / folder).glob("*.md"))


GUIDE = pages("guide")
#: The longest that a page may be, in screens of 1280 by 800; one of howto/ shows one task.
SCREENS = {"guide/transactions": 18, "guide/asgi": 18} | dict.fromkeys(pages("howto"), 2)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Open a window of 1280 by 800."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    yield page
    page.close()


@pytest.mark.parametrize("name", SCREENS)
def test_long_pages_are_not_too_long(page, address, name):
    """The longest pages of the guide, and each of howto, have fewer screens than they may."""
    page.goto(f"{address}/{name}.html")
    # To the end of its text: what is below leads to other pages, and is as high as its font.
    box = page.locator("article").bounding_box()
    assert box["y"] + box["height"] < SCREENS[name] * 800


@pytest.mark.parametrize("name", GUIDE)
def test_contents_stand_beside_the_page(page, address, name):
    """At 1280 px the contents of a page with sections are to be seen, and nothing is cut off."""
    page.goto(f"{address}/{name}.html")
    if page.locator("article section section").count():
        box = page.locator(".toc-drawer").bounding_box()
        assert 0 < box["x"] < box["x"] + box["width"] <= 1280
        article = page.locator("article").bounding_box()
        assert article["x"] + article["width"] <= box["x"]
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 1280


def test_proofs_of_a_page_are_not_too_large(address):
    """What is proven of a page is under 300 kB, as a page and as the script of its marks."""
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").with_suffix("").as_posix()
        if name.startswith("_") or "]: tests/" not in path.read_text(encoding="utf-8"):
            continue
        for ending in ("html", "js"):
            with urlopen(f"{address}/proven/{name}.{ending}") as answer:
                assert len(answer.read()) < 300_000, name


def test_set_up_is_folded(page, address):
    """What sets a program up is hidden until the bar is pressed; what the text speaks of is not."""
    page.goto(f"{address}/guide/transactions.html")
    block = page.locator(".example", has_text="examples/transactions/transfer.py")
    code = block.locator("pre").first
    expect(code).not_to_contain_text("settings.configure(", use_inner_text=True)
    expect(code).to_contain_text("@atomic()", use_inner_text=True)
    expect(code).to_contain_text("from ormbridge import atomic", use_inner_text=True)
    bar = block.get_by_role("button", name="Show all 58 lines")
    expect(bar).to_have_attribute("aria-expanded", "false")
    bar.click()
    expect(code).to_contain_text("settings.configure(", use_inner_text=True)
    expect(bar).to_have_attribute("aria-expanded", "true")


def test_nothing_is_folded_on_paper_or_without_javascript(browser, page, address):
    """A printed program is whole, and so is one where no script runs."""
    page.goto(f"{address}/guide/transactions.html")
    page.emulate_media(media="print")
    without = browser.new_page(java_script_enabled=False)
    without.goto(f"{address}/guide/transactions.html")
    for each in (page, without):
        code = each.locator(".example", has_text="examples/transactions/transfer.py").locator("pre")
        expect(code.first).to_contain_text("settings.configure(", use_inner_text=True)
    without.close()
