"""The ``benchmark`` directive and the role ``bench``."""

import re

import pytest

from docs._ext import bench
from tests.docs.conftest import EXTENSIONS, Site

TABLE = {"head": ["way", "calls a second"], "rows": [["ormbridge", "71,234"], ["anyio", "1"]]}
CHART = {
    "head": ["way", "median"],
    "rows": [["ormbridge", "81,234/s"]],
    "svg": '<svg class="chart" role="img"></svg>',
    "fold": "The figures as a table",
}
RESULTS = {
    "sentences": {"call": "A call takes 14 µs."},
    "shown": {"noop": TABLE, "gains": CHART},
}


@pytest.fixture(autouse=True)
def _directive(monkeypatch: pytest.MonkeyPatch, site: Site):
    monkeypatch.setattr("tests.docs.conftest.EXTENSIONS", [*EXTENSIONS, "bench"])
    site.write_sealed(bench.RESULTS, RESULTS)


def test_table(site: Site):
    """A row is shown as the table that is recorded."""
    site.add("docs/guide.md", "\n```{benchmark} noop\n```\n")
    assert site.build() == []
    html = site.html("guide")
    assert re.findall(r"<th .*?><p>(.*?)</p></th>", html) == TABLE["head"]
    assert re.findall(r"<td><p>(.*?)</p></td>", html) == ["ormbridge", "71,234", "anyio", "1"]
    assert "<details>" not in html.partition("<article")[2].partition("</article>")[0]


def test_chart_stands_in_the_page_and_its_figures_fold_out(site: Site):
    """A chart is part of the page, so that light and dark reach it; its figures are a table."""
    site.add("docs/guide.md", "\n```{benchmark} gains\n```\n")
    assert site.build() == []
    folded = "<details><summary>The figures as a table</summary>"
    assert f"{CHART['svg']}{folded}" in site.html("guide")
    details = site.html("guide").partition(folded)[2].partition("</details>")[0]
    assert "<td><p>81,234/s</p></td>" in details


def test_sentence_is_the_recorded_one(site: Site):
    """A sentence with a figure comes from the results; a page is built again when they change."""
    site.add("docs/guide.md", "\n{bench}`call` It is so.\n")
    assert site.build() == []
    assert "<p>A call takes 14 µs. It is so.</p>" in site.html("guide")
    site.write_sealed(bench.RESULTS, {**RESULTS, "sentences": {"call": "A call takes 13 µs."}})
    assert site.build() == []
    assert "<p>A call takes 13 µs. It is so.</p>" in site.html("guide")


def test_bad_day_has_a_file_of_its_own(site: Site):
    """Directive and role show what is recorded of a bad day."""
    results = {"sentences": {"away": "It is away."}, "shown": {"away": TABLE}}
    site.write_sealed(bench.BAD_DAYS, results)
    site.add("docs/guide.md", "\n{bad-day}`away` So:\n\n```{bad-day} away\n```\n")
    assert site.build() == []
    assert "<p>It is away. So:</p>" in site.html("guide")
    assert "<td><p>71,234</p></td>" in site.html("guide")


USES = ["```{benchmark} orm\n```", "{bench}`orm`"]


@pytest.mark.parametrize("use", USES)
def test_what_is_not_recorded_is_refused(site: Site, use: str):
    """A row or a sentence that the results do not have fails the build, and says how to get it."""
    site.add("docs/guide.md", f"\n{use}\n")
    (warning,) = site.build()
    assert f"{bench.RESULTS}: " in warning
    assert "KeyError('orm')" in warning
    assert bench.REMEDIES[bench.RESULTS] in warning


@pytest.mark.parametrize("use", ["```{benchmark} noop\n```", "{bench}`call`"])
def test_missing_results_are_refused(site: Site, use: str):
    """Without results the build fails and says how to get them."""
    site.path(bench.RESULTS).unlink()
    site.add("docs/guide.md", f"\n{use}\n")
    (warning,) = site.build()
    assert "FileNotFoundError" in warning
    assert bench.REMEDIES[bench.RESULTS] in warning


@pytest.mark.parametrize("use", ["```{benchmark} gains\n```", "{bench}`call`"])
def test_edited_results_are_refused(site: Site, use: str):
    """A figure that was changed by hand fails the build, also in a table that is not shown."""
    site.replace(bench.RESULTS, "71,234", "91,234")
    site.add("docs/guide.md", f"\n{use}\n")
    (warning,) = site.build()
    assert "was changed by hand and is not what was recorded" in warning
    assert "91,234" not in site.html("guide")
