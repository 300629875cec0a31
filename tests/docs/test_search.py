"""The search of the site: what people type leads to the section that answers."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
LINES = (Path(__file__).parent / "queries.txt").read_text(encoding="utf-8").splitlines()
QUERIES = {
    query: [each.strip() for each in targets.split("|")]
    for query, _, targets in (line.partition(" => ") for line in LINES)
    if targets and not query.startswith("#")
}


def page_of(target: str) -> Path:
    """Return the source of the page of *target*."""
    return ROOT / "docs" / f"{target.partition('#')[0]}.md"


FOUND = [query for query, targets in QUERIES.items() if any(page_of(t).exists() for t in targets)]

# What a line of a log has around a message.
LINES_OF_LOGS = [
    "2026-11-28 09:12:01,332 ERROR [django.request] log.py:253 Server Error: /orders/17/ {}",
    '  File "/srv/app/shop/views.py", line 118, in post\n    order.save()\n{}\n[pid 4711]',
    "web-1  | [2026-11-28 09:12:01 +0000] [31] [ERROR] {} (host db-3.internal:5432)",
]


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    """Open a page as wide as a laptop's, which notes what it asks for."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    yield page
    context.close()


def search(page: Page, whole_site: Path, query: str) -> None:
    """Open the page of the results as the form in the side bar does, from a file."""
    page.goto(
        f"{(whole_site / 'search.html').as_uri()}?q={quote(query)}&check_keywords=yes&area=default"
    )
    page.wait_for_selector("#search-results .search-summary", state="attached")


@pytest.fixture(scope="module")
def first_results(page: Page, whole_site: Path) -> dict[str, str]:
    """Ask for each line in the browser; return where the first result leads."""
    search(page, whole_site, "anything")
    script = """lines => lines.map(line => {
        const { page, anchor } = Search.rank(line)[0].section;
        return `${page}#${anchor}`;
    })"""
    return dict(zip(FOUND, page.evaluate(script, FOUND), strict=True))


@pytest.mark.parametrize("query", FOUND)
def test_first_result_is_the_answer(whole_site: Path, first_results: dict[str, str], query: str):
    """The first result leads to the section that answers, and the section is there."""
    place = first_results[query]
    assert any(place == each or place.startswith(f"{each}#") for each in QUERIES[query]), place
    name, _, anchor = place.partition("#")
    assert f'id="{anchor}"' in (whole_site / f"{name}.html").read_text(encoding="utf-8")


# One for each page, the longest line of each.
CLICKED = {page_of(QUERIES[query][0]): query for query in sorted(FOUND, key=len)}


@pytest.mark.parametrize("query", CLICKED.values())
def test_click_lands_on_the_section(page: Page, whole_site: Path, query: str):
    """The click on the first result scrolls to the section."""
    search(page, whole_site, query)
    page.locator("#search-results li a").first.click()
    # The theme scrolls there smoothly.
    lands = """() => {
        const id = location.hash.slice(1);
        const top = id && document.getElementById(id)?.getBoundingClientRect().top;
        return top !== "" && top >= 0 && top < 400;
    }"""
    page.wait_for_function(lands)
    place = page.url.removeprefix(f"{whole_site.as_uri()}/").replace(".html", "")
    assert any(place == each or place.startswith(f"{each}#") for each in QUERIES[query]), place


@pytest.fixture(scope="module")
def messages(whole_site: Path) -> list[tuple[str, str]]:
    """Return every wording of every message, and the anchor of its entry."""
    text = (whole_site / "sections.js").read_text(encoding="utf-8")
    sections = json.loads(text.removeprefix("const sections = ").rstrip(";\n"))
    return [(each["anchor"], printed) for each in sections for printed in each["prints"]]


@pytest.mark.parametrize("line", LINES_OF_LOGS)
def test_line_of_a_log(page: Page, whole_site: Path, messages: list[tuple[str, str]], line: str):
    """A whole line that contains a message leads to the entry of that message."""
    search(page, whole_site, "anything")
    script = "lines => lines.map(line => Search.rank(line)[0].section.anchor)"
    found = page.evaluate(script, [line.format(printed) for _, printed in messages])
    wrong = [
        (printed, other)
        for (anchor, printed), other in zip(messages, found, strict=True)
        if other != anchor
    ]
    assert wrong == []
    assert len(messages) > 100


def test_pasted_into_the_form(page: Page, whole_site: Path):
    """What is pasted into the side bar, line breaks and all, is searched as one line."""
    page.goto((whole_site / "index.html").as_uri())
    form = page.locator("input.sidebar-search")
    form.fill(
        'Traceback (most recent call last):\n  File "a.py", line 3\nFATAL: sorry, too many clients'
    )
    form.press("Enter")
    first = page.locator("#search-results li a").first
    assert (first.get_attribute("href") or "").endswith("reference/messages.html#too-many-clients")


def test_nothing_is_asked_of_the_network(page: Page, whole_site: Path):
    """The search asks for files of the site and for nothing else, and reports no error."""
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    search(page, whole_site, "pgbouncer")
    assert page.locator("#search-results li").count() > 3
    assert [url for url in asked if not url.startswith(whole_site.as_uri())] == []
    assert errors == []


def test_what_is_proven_is_not_found(page: Page, whole_site: Path, messages: list[tuple[str, str]]):
    """Neither index has the pages of what is proven, which have the words of all others."""
    search(page, whole_site, "What is proven")
    links = [
        each.get_attribute("href") or "" for each in page.locator("#search-results li a").all()
    ]
    assert links
    assert [link for link in links if link.startswith("proven")] == []
    index = (whole_site / "searchindex.js").read_text(encoding="utf-8")
    assert "What is proven" not in index


def test_nothing_found(page: Page, whole_site: Path):
    """Where nothing matches, the page says so."""
    search(page, whole_site, "qqqqzzzz")
    assert "Nothing found" in page.locator("#search-results").inner_text()


def test_results_fit_on_a_phone(page: Page, whole_site: Path):
    """Long messages are broken, so that nothing is wider than the screen."""
    page.set_viewport_size({"width": 390, "height": 800})
    search(page, whole_site, "DatabaseWrapper objects created in a thread")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator("#search-results li a").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.set_viewport_size({"width": 1280, "height": 800})
