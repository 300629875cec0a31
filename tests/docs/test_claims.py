"""Claims in footnotes, and what is written of their tests."""

import dataclasses
import json
import re

import pytest

from docs._ext.record import runs
from tests.docs.conftest import CLAIM, NOTE, POSTGRESQL, Site

ENTRY = "test-greeting-test-greets"
OTHER = "tests/test_greeting.py::test_other"


def test_mark_links_to_its_entry(site: Site):
    """A mark says how many tests it stands for, links to the first, and no tab key stops there."""
    site.build()
    assert (
        f'<a class="claim" id="claim-1" href="proven/index.html#{ENTRY}" title="1 test" '
        'tabindex="-1" aria-hidden="true">✓</a>'
    ) in site.html("index")


MARKED = {
    "It greets.[^greets] Politely.[^other] Always.": ["2 tests"],
    "It greets.[^greets]\n\nPolitely.[^other]": ["1 test", "1 test"],
    "- It greets.[^greets]\n- Politely.[^other]": ["1 test", "1 test"],
    "**It greets.[^greets]** Politely.[^greets]": ["1 test"],
    "| a | b |\n|---|---|\n| c[^greets] | d[^other] |\n| e[^greets] | f[^greets] |": [
        "2 tests",
        "1 test",
    ],
}


@pytest.mark.parametrize(("text", "expected"), MARKED.items())
def test_one_mark_a_paragraph_or_row(site: Site, text: str, expected: list[str]):
    """However many tests stand behind a paragraph or a row, it has one mark, at its end."""
    site.record(OTHER)
    note = NOTE + f"[^other]: {OTHER}\n" if "[^other]" in text else NOTE
    site.add("docs/guide.md", f"\n{text}\n{note}")
    assert site.build() == []
    html = site.html("guide")
    assert re.findall(r'class="claim" [^>]*title="([^"]*)"', html) == expected
    assert html.count("✓</a></p>") + html.count("✓</a></td>") == len(expected)


def test_entry_tells_what_is_proven(site: Site):
    """An entry has the docstring, the sentence with a link back, where it passed, the source."""
    site.build()
    html = site.html("proven/index")
    entry = html.partition(f'id="{ENTRY}"')[2].partition("</section>")[0]
    text = re.sub(r"<[^>]+>", "\n", entry.partition("<details")[0])
    assert [line for line in text.strip(">").splitlines() if line.strip()] == [
        "greet",
        " says hello",
        "It knows the name.",
        "greet",
        " says hello to a name. ",
        "Go there",
        "Passed on PostgreSQL, with Python 3.13; SQLite, with Python 3.11.",
    ]
    assert 'href="../index.html#claim-1"' in entry
    assert "<summary><code>tests/test_greeting.py</code>, line 4</summary>" in entry
    (source,) = site.code("proven/index")
    assert source.startswith('@pytest.mark.parametrize("name", ["ada"])\ndef test_greets(name):')
    assert source.endswith("    assert name\n")


def test_script_holds_what_a_mark_opens(site: Site):
    """Beside the entries is a script with the sentences and tests of each mark."""
    site.build()
    script = site.path("out/proven/index.js").read_text()
    proofs = json.loads(script.removeprefix("window.proofs = ").removesuffix(";\n"))
    assert proofs["marks"] == {
        "claim-1": {'<code class="literal">greet</code> says hello to a name.': [ENTRY]}
    }
    assert "It knows the name." in proofs["tests"][ENTRY]
    assert "PostgreSQL 15.6" in proofs["versions"]


def test_page_tells_the_versions(site: Site):
    """A table has each environment, once; the text says how much there is and of when."""
    site.build()
    html = site.html("proven")
    assert "1 sentence, 1 test. The record is of 2025-01-31." in html
    assert 'href="proven/index.html">Home</a>: 1 sentence, 1 test' in re.sub(
        r' class="[^"]*"', "", html
    )
    for page in (html, site.html("proven/index")):
        assert re.findall(r"<td>(.*?)</td>", page) == [
            *("PostgreSQL 15.6", "3.13.0", "6.1", "4.3.2", "3.13.0"),
            *("SQLite 3.40.1", "3.11.2", "5.2", "4.3.2", "3.13.0"),
        ]


def test_what_is_proven_is_not_searched(site: Site):
    """No search finds the entries: they repeat what the pages say."""
    site.build()
    assert "proven/index" not in site.path("out/searchindex.js").read_text()


def test_test_claimed_twice_has_an_entry_for_each_page(site: Site):
    """A test that two pages name has an entry on the page of each, with links back to this one."""
    site.add("docs/guide.md", f"\nIt greets.[^greets] Always.[^greets]\n{NOTE}")
    assert site.build() == []
    assert "3 sentences, 1 test." in site.html("proven")
    for page, links in (("index", 1), ("guide", 2)):
        html = site.html(f"proven/{page}")
        assert html.count(f'id="{ENTRY}"') == 1
        assert html.count(f'href="../{page}.html#claim-1"') == links


def test_list_follows_the_pages(site: Site):
    """A claim that goes from a page goes from the list in the next build, and back again."""
    text = site.path("docs/index.md").read_text()
    site.build()
    site.write("docs/index.md", text.replace("[^greets] ", " ").replace(NOTE, ""))
    assert site.build() == []
    assert "No page makes a claim yet." in site.html("proven")
    site.write("docs/index.md", text)
    assert site.build() == []
    assert "1 sentence, 1 test" in site.html("proven")


def test_list_follows_the_run(site: Site):
    """A new record shows on the page in the next build, though no page changed."""
    site.build()
    run = runs.load(site.root)
    newer = dataclasses.replace(POSTGRESQL, database="PostgreSQL 17.1")
    run.add(newer, "2025-02-28", {CLAIM: (run.tests[CLAIM].sha256, True)})
    runs.save(site.root, run)
    assert site.build() == []
    assert "<td>PostgreSQL 17.1</td>" in site.html("proven/index")


SENTENCES = {
    "the one before": ("First. The second one. {}", "The second one."),
    "stop behind the mark": ("First. The second one {}.", "The second one"),
    "code at the start": ("First. `f()` is called. {} Third.", "f() is called."),
    "stop in code": ("Call `a. B` now. {}", "Call a. B now."),
    "link": ("First. See [the Guide](guide.md) now. {}", "See the Guide now."),
    "over two lines": ("First. The second\none. {}", "The second one."),
    "stop at a line's end": ("First.\nThe second one. {}", "The second one."),
    "in a list": ("- Only this. {}", "Only this."),
    "two marks": ("First. The second one. {} {}", "The second one."),
    "another mark before": ("First. {} The second one. {}", "The second one."),
    "name with a stop": ("First. Since Django 5.2 it works, e.g. here. {}", None),
}


@pytest.mark.parametrize(("text", "expected"), SENTENCES.values(), ids=SENTENCES)
def test_sentence_is_the_one_before_the_mark(site: Site, text: str, expected: str | None):
    """What counts as the sentence is the text from the last stop to the mark."""
    site.add("docs/guide.md", "\n" + text.replace("{}", "[^greets]") + "\n" + NOTE)
    assert site.build() == []
    said = re.findall(r"<li>(.*?) <a", site.html("proven/guide"), re.DOTALL)
    expected = expected or "Since Django 5.2 it works, e.g. here."
    assert re.sub(r"<[^>]+>", "", said[-1]) == expected


def spoil_name(site: Site) -> None:
    site.replace("docs/index.md", CLAIM, "tests/test_greeting.py::test_gone")


def spoil_file(site: Site) -> None:
    site.replace("docs/index.md", CLAIM, "tests/test_gone.py::test_greets")


def spoil_parameter(site: Site) -> None:
    site.replace("docs/index.md", CLAIM, f"{CLAIM}[ada]")


def spoil_record(site: Site) -> None:
    site.replace("docs/index.md", CLAIM, "tests/test_greeting.py::test_other")


def spoil_outcome(site: Site) -> None:
    site.record(passed=False)


def spoil_source(site: Site) -> None:
    site.replace("tests/test_greeting.py", "    assert name\n", "    assert not name\n")


def spoil_parameters(site: Site) -> None:
    site.replace("tests/test_greeting.py", '["ada"]', '["ada", "bob"]')


def spoil_run(site: Site) -> None:
    site.path(runs.RUN).unlink()


def spoil_seal(site: Site) -> None:
    site.record(passed=False)
    site.replace(runs.RUN, '"failed": [0]', '"failed": []')


def spoil_environment(site: Site) -> None:
    site.replace(runs.RUN, "PostgreSQL 15.6", "PostgreSQL 17.1")


def spoil_json(site: Site) -> None:
    site.write(runs.RUN, "[]")


REFUSED = {
    spoil_name: "claim: no test 'tests/test_greeting.py::test_gone': tests/test_greeting.py has no "
    "'test_gone'; correct the name or add the test",
    spoil_file: "claim: no test 'tests/test_gone.py::test_greets': tests/test_gone.py does not "
    "exist; correct the name or add the test",
    spoil_parameter: f"claim: '{CLAIM}[ada]' does not name a test; "
    "write tests/<file>.py::<test>, without parameters",
    spoil_record: "claim: test 'tests/test_greeting.py::test_other' is not in the recorded run; "
    "run: nox -s record -- tests/test_greeting.py::test_other",
    spoil_outcome: f"claim: test '{CLAIM}' failed in the recorded run (PostgreSQL 15.6); "
    f"mend it, then run: nox -s record -- {CLAIM}",
    spoil_source: f"claim: test '{CLAIM}' (tests/test_greeting.py:4) changed after it was "
    f"recorded; run: nox -s record -- {CLAIM}",
    spoil_parameters: f"claim: test '{CLAIM}' (tests/test_greeting.py:4) changed after it was "
    f"recorded; run: nox -s record -- {CLAIM}",
    spoil_run: "1 claims: no run is recorded (docs/_recorded/run.json is missing); "
    "run: nox -s record",
    spoil_seal: "1 claims: docs/_recorded/run.json was changed by hand and is not what was "
    f"recorded (1 tests, '{CLAIM}' the first); run: nox -s record",
    spoil_environment: "1 claims: docs/_recorded/run.json was changed by hand and is not what was "
    f"recorded (1 tests, '{CLAIM}' the first); run: nox -s record",
    spoil_json: "1 claims: docs/_recorded/run.json is damaged (TypeError('list indices must be "
    "integers or slices, not str')); run: nox -s record",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_claim_that_is_not_proven_is_refused(site: Site, spoil):
    """The warning names page, line, test and remedy, and the page does not list the test."""
    site.build()
    spoil(site)
    expected = [f"docs/index.md:3: WARNING: {REFUSED[spoil]} [claim]"]
    assert site.build() == expected
    assert site.build() == expected, "the next build must not forget the warning"
    assert ENTRY not in site.html("proven/index")


def test_claim_without_a_sentence_is_refused(site: Site):
    """A mark that stands alone proves nothing."""
    site.add("docs/guide.md", f"\n[^greets]\n{NOTE}")
    assert site.build() == [
        f"docs/guide.md:5: WARNING: claim '{CLAIM}' follows no sentence; "
        "put it behind the sentence it proves [claim]"
    ]


def test_note_that_nothing_refers_to_is_refused(site: Site):
    """A note alone proves no sentence; the warning names it and what to do."""
    site.add("docs/guide.md", NOTE)
    expected = [
        "docs/guide.md:5: WARNING: no sentence refers to the note 'greets' "
        f"({CLAIM}); write [^greets] behind the sentence that the test proves, or delete the note "
        "[claim]"
    ]
    assert site.build() == expected
    assert site.build() == expected, "the next build must not forget the warning"


def test_reference_without_a_note_is_refused(site: Site):
    """A sentence cannot refer to a note that the page does not have."""
    site.add("docs/guide.md", "\nIt greets.[^greets]\n")
    expected = 'docs/guide.md:5: ERROR: Unknown target name: "greets". [docutils]'
    assert expected in site.build()


def test_note_written_twice_is_refused(site: Site):
    """A page has one note of a name: two could name different tests."""
    site.add("docs/guide.md", f"\nIt greets.[^greets]\n{NOTE}{NOTE}")
    (warning,) = site.build()
    assert "docs/guide.md:9: WARNING: Duplicate footnote definition found" in warning


def test_other_footnotes_stay(site: Site):
    """A note whose text is not a test is a footnote as everywhere, and one test may have many."""
    text = "It greets.[^greets] Politely.[^why] Always.[^greets]\n\n[^why]: As tests/ says.\n"
    site.add("docs/guide.md", f"\n{text}{NOTE}")
    assert site.build() == []
    html = site.html("guide")
    assert re.findall(r'class="claim" id="([\w-]+)"', html) == ["claim-1"]
    assert "As tests/ says." in html
    assert html.count('class="footnote-reference') == 1
    assert CLAIM not in html
