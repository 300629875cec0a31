"""Quiet marks in a browser: what a tick opens, and who comes across it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from docs._ext.record import recordings
from tests.docs.conftest import CLAIM, FILES, NOTE, Site

PAGE = f"""\
# Home

It greets a name.[^greets] It is polite.[^greets]

| a | b |
|---|---|
| c[^greets] | d[^greets] |

```{{example}} index/greeting
```

```{{toctree}}
proven
```
{NOTE}"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a page with a paragraph and a row that are proven; return the file."""
    site = Site(tmp_path_factory.mktemp("site"))
    for name in ("examples/index/greeting.py", "tests/test_greeting.py", "docs/proven.md"):
        site.write(name, FILES[name])
    recordings.save(site.root, "index/greeting", ["Hello, ada"])
    site.record(CLAIM)
    site.write("docs/index.md", PAGE)
    site.build_as_project()
    return site.output / "index.html"


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """Open a browser that remembers nothing of an earlier test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, built: Path) -> Page:
    """Open the page as a file."""
    page = context.new_page()
    page.goto(built.as_uri())
    return page


def test_mark_opens_its_tests_in_place(page: Page):
    """A tick opens sentences, docstring, databases, source and versions, and closes them again."""
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    mark = page.locator("#claim-1")
    mark.click()
    panel = page.locator(".proofs")
    expect(panel).to_contain_text("It greets a name.")
    expect(panel).to_contain_text("It is polite.")
    panel.locator("summary", has_text="greet says hello").first.click()
    expect(panel).to_contain_text("It knows the name.")
    expect(panel).to_contain_text(
        "Passed on PostgreSQL, with Python 3.13; SQLite, with Python 3.11"
    )
    expect(panel).to_contain_text("tests/test_greeting.py, line 4")
    expect(panel.locator("pre").first).to_contain_text("def test_greets(name):")
    panel.locator("summary", has_text="Versions").click()
    expect(panel).to_contain_text("PostgreSQL 15.6")
    assert all(each.startswith("file://") for each in requests)
    scripts = [each.rpartition("/out/")[2] for each in requests if each.endswith(".js")]
    assert scripts == ["proven/index.js"]
    assert page.url.endswith("/index.html")
    panel.get_by_role("button", name="Close").click()
    expect(panel).to_have_count(0)
    expect(mark).to_have_attribute("aria-expanded", "false")


def test_mark_of_a_row_opens_below_it(page: Page):
    """What a row opens is a row too, with each test once."""
    page.locator("#claim-2").click()
    panel = page.locator("tr + tr.proofs-row .proofs")
    expect(panel.locator("summary", has_text="greet says hello")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("Escape")
    expect(panel).to_have_count(0)


def stops(page: Page) -> list[str]:
    """Return the classes of the ticks that the tab key stops at, going once through the page."""
    found, seen = [], page.locator("body").evaluate("() => document.querySelectorAll('*').length")
    page.locator("body").evaluate("() => document.activeElement.blur()")
    for _ in range(seen):
        page.keyboard.press("Tab")
        name = page.evaluate("() => document.activeElement.className")
        if name == "claim":
            found.append(name)
        if page.evaluate("() => document.activeElement === document.body"):
            break
    return found


def test_marks_are_quiet_until_they_are_asked_for(page: Page, context: BrowserContext, built: Path):
    """No tab key and no screen reader meets a tick before the switch, which is remembered."""
    assert stops(page) == []
    assert page.get_by_role("button", name="of what stands before").count() == 0
    page.get_by_role("button", name="Show the tests").click()
    assert stops(page) == ["claim", "claim"]
    assert page.get_by_role("button", name="1 test of what stands before").count() == 2
    other = context.new_page()
    other.goto(built.as_uri())
    expect(other.get_by_role("button", name="Show the tests")).to_have_attribute(
        "aria-pressed", "true"
    )
    assert stops(other) == ["claim", "claim"]


def test_marks_are_not_printed(page: Page):
    """On paper there is no tick, and nothing that one has opened."""
    page.locator("#claim-1").click()
    expect(page.locator(".proofs")).to_be_visible()
    page.emulate_media(media="print")
    for name in ("a.claim", ".proofs", ".show-the-tests"):
        assert not page.locator(name).first.is_visible()


def test_mark_is_a_link_without_javascript(browser: Browser, built: Path):
    """Where no script runs, a tick leads to the test, and there is no switch."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(built.as_uri())
    assert page.get_by_role("button", name="Show the tests").count() == 0
    page.locator("#claim-1").click()
    assert page.url.endswith("/proven/index.html#test-greeting-test-greets")
    assert page.locator("section:target h2").inner_text().startswith("greet says hello")
    context.close()
