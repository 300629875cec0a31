"""The ``calculator`` directive: its words and arithmetic, in Python and in the browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from docs._ext import calculator
from docs._ext.record import recordings
from tests.docs.conftest import Site

FORMULA = "processes * threads * aliases ≤ max_connections - reserved - others"
#: (processes, threads, aliases, limit, reserved, others) and what is said of them.
CASES = {
    (4, 10, 1, 100, 3, 10): "fits: at most 40 connections, and there is room for 87",
    (1, 97, 1, 100, 3, 0): "fits: at most 97 connections, and there is room for 97",
    (1, 98, 1, 100, 3, 0): (
        "too many: up to 98 connections, and there is room for 97; lower ASGI_THREADS to 97, "
        "raise max_connections to 101, or put PgBouncer in between"
    ),
    (8, 20, 2, 100, 3, 10): (
        "too many: up to 320 connections, and there is room for 87; lower ASGI_THREADS to 5, "
        "raise max_connections to 333, or put PgBouncer in between"
    ),
    (50, 1, 2, 100, 3, 10): (
        "too many: up to 100 connections, and there is room for 87; run fewer processes, "
        "raise max_connections to 113, or put PgBouncer in between"
    ),
    (1, 1, 1, 5, 3, 10): (
        "too many: up to 1 connections, and there is room for 0; run fewer processes, "
        "raise max_connections to 14, or put PgBouncer in between"
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a page with the project's own ``conf.py``; return the file."""
    site = Site(tmp_path_factory.mktemp("site"))
    site.write("examples/index/greeting.py", "print('Hello')\n")
    recordings.save(site.root, "index/greeting", ["Hello"])
    shown = "```{calculator}\n```\n\n```{example} index/greeting\n```\n\n{doc}`no`\n"
    site.write("docs/index.md", f"# Home\n\n{shown}")
    site.write("docs/no.md", "---\norphan: true\n---\n\n# No calculator\n")
    site.build_as_project()
    return site.output / "index.html"


@pytest.fixture
def page(browser: Browser, built: Path) -> Iterator[Page]:
    """Open the page on a phone."""
    context = browser.new_context(viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(built.as_uri())
    yield page
    context.close()


def fill(page: Page, figures: tuple[int, ...]) -> None:
    """Put *figures* into the form."""
    for (_, label, _, _), figure in zip(calculator.FIELDS, figures, strict=True):
        page.get_by_label(label, exact=True).fill(str(figure))


@pytest.mark.parametrize("figures", CASES)
def test_verdict(figures: tuple[int, ...]):
    """What fits, fits to the last connection; what does not comes with its remedy."""
    assert calculator.verdict(*figures) == CASES[figures]


@pytest.mark.parametrize("figures", [case for case in CASES if "lower" in CASES[case]])
def test_remedies_fit(figures: tuple[int, ...]):
    """With the threads, or the max_connections, that are named, it fits."""
    said = re.search(r"ASGI_THREADS to (\d+), raise max_connections to (\d+)", CASES[figures])
    assert said is not None
    processes, threads, aliases, limit, reserved, others = figures
    fewer = (processes, int(said[1]), aliases, limit, reserved, others)
    assert calculator.verdict(*fewer).startswith("fits")
    higher = (processes, threads, aliases, int(said[2]), reserved, others)
    assert calculator.verdict(*higher).startswith("fits")


def test_page_says_it_without_a_script(browser: Browser, built: Path):
    """Without JavaScript there are the formula and an example, and no form that does nothing."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(built.as_uri())
    text = page.locator(".calculator").inner_text()
    assert FORMULA in text
    assert f"For example, 4 * 10 * 1 and 100 - 3 - 10: {CASES[4, 10, 1, 100, 3, 10]}." in text
    assert not page.locator(".calculator-form").is_visible()
    context.close()


def test_script_says_the_same(page: Page):
    """The form answers at once, in the words of the Python function."""
    seen = {}
    for figures in CASES:
        fill(page, figures)
        seen[figures] = page.locator(".calculator output").inner_text()
    assert seen == CASES


def test_form_begins_with_the_example(page: Page):
    """Before anything is typed, the form says what the example says."""
    said = page.locator(".calculator output").inner_text()
    assert said == calculator.verdict(**calculator.FIGURES)


@pytest.mark.parametrize("wrong", ["", "0", "2.5", "-3"])
def test_form_says_what_it_takes(page: Page, wrong: str):
    """A figure that makes no sense is named, with what is accepted."""
    label = "Threads of a process (ASGI_THREADS)"
    page.get_by_label(label, exact=True).fill(wrong)
    said = page.locator(".calculator output").inner_text()
    assert said == f"“{label}” takes a whole number from 1 to 100000"


def test_page_is_as_wide_as_a_phone(page: Page):
    """The form fits on 390 pixels."""
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box, figure = (
        page.locator(each).bounding_box() for each in (".calculator", "input#calculator-limit")
    )
    assert box is not None
    assert figure is not None
    assert figure["x"] + figure["width"] < box["x"] + box["width"]


def test_script_is_on_its_page_only(built: Path):
    """A page without a calculator loads nothing for it."""
    assert "calculator.js" in built.read_text(encoding="utf-8")
    assert "calculator.js" not in built.with_name("no.html").read_text(encoding="utf-8")
