"""The ``benchmark`` directive."""

import json
import re

import pytest

from docs._ext import bench
from tests.docs.conftest import EXTENSIONS, Site

SPREAD = {"median": 1.0, "low": 1.0, "high": 1.0}
NONE_FAILED = {"median": 0.0, "low": 0.0, "high": 0.0}
RESULTS = {
    "date": "2025-01-31",
    "python": "3.11.2",
    "system": "Linux x86_64",
    "processor": "Abacus 2",
    "cpus": 2,
    "load": 0.34,
    "packages": {"Django": "5.2"},
    "loop": "asyncio",
    "rows": {
        "noop": {
            "rounds": 40,
            "reach": {"channels.db": 2.5},
            "contestants": {
                "ormbridge": {
                    "calls_per_second": {"median": 71234.5, "low": 7e4, "high": 8e4},
                    "cpu_us_per_call": {"median": 14.23, "low": 14.0, "high": 15.0},
                    "failed_percent": NONE_FAILED,
                    "ratio_to": {"channels.db": {"median": 3.649, "low": 3.152, "high": 3.885}},
                },
                "channels.db": {
                    "calls_per_second": {"median": 19522.2, "low": 1e4, "high": 2e4},
                    "cpu_us_per_call": {"median": 41.9, "low": 40.0, "high": 45.0},
                    "failed_percent": NONE_FAILED,
                    "ratio_to": {"channels.db": SPREAD},
                },
            },
        }
    },
}


@pytest.fixture(autouse=True)
def _directive(monkeypatch: pytest.MonkeyPatch, site: Site):
    monkeypatch.setattr("tests.docs.conftest.EXTENSIONS", [*EXTENSIONS, "bench"])
    site.write_sealed(bench.RESULTS, RESULTS)


def test_row_is_a_table(site: Site):
    """A row has a line for each contestant: rate, processor time, ratio and its range."""
    site.add("docs/guide.md", "\n```{benchmark} noop\n```\n")
    assert site.build() == []
    html = site.html("guide")
    assert re.findall(r"<td><p>(.*?)</p></td>", html) == [
        *("ormbridge", "71,234", "14.2", "3.65 (3.15 to 3.88)"),
        *("channels.db", "19,522", "41.9", "1.00"),
    ]
    assert re.findall(r"<th .*?><p>(.*?)</p></th>", html) == [
        "way",
        "calls a second",
        "CPU µs a call",
        "to channels.db",
    ]
    assert "To reach: 2.50 of channels.db; seen: 3.65, reached. Medians of 40 rounds." in html


def test_shortfall_is_told(site: Site):
    """Where the figure falls short of what was to be reached, the page says so."""
    results = json.loads(json.dumps(RESULTS))
    results["rows"]["noop"]["reach"]["channels.db"] = 4.0
    site.write_sealed(bench.RESULTS, results)
    site.add("docs/guide.md", "\n```{benchmark} noop\n```\n")
    assert site.build() == []
    assert "To reach: 4.00 of channels.db; seen: 3.65, not reached." in site.html("guide")


def test_row_of_something_else_than_calls(site: Site):
    """A row that counts something else than calls says so, and how much memory that took."""
    results = json.loads(json.dumps(RESULTS))
    results["rows"]["noop"]["unit"] = "row"
    for figures in results["rows"]["noop"]["contestants"].values():
        figures["peak_mib"] = {"median": 50.0, "low": 50.0, "high": 54.4}
    site.write_sealed(bench.RESULTS, results)
    site.add("docs/guide.md", "\n```{benchmark} noop\n```\n")
    assert site.build() == []
    html = site.html("guide")
    assert re.findall(r"<th .*?><p>(.*?)</p></th>", html) == [
        "way",
        "rows a second",
        "CPU µs a row",
        "to channels.db",
        "peak of memory",
    ]
    assert html.count("<td><p>54 MiB</p></td>") == 2


def test_what_has_no_mark_is_compared_only(site: Site):
    """A ratio for which nothing was to be reached is in the table, without a verdict."""
    results = json.loads(json.dumps(RESULTS))
    results["rows"]["noop"]["reach"]["channels.db"] = None
    site.write_sealed(bench.RESULTS, results)
    site.add("docs/guide.md", "\n```{benchmark} noop\n```\n")
    assert site.build() == []
    assert "<td><p>3.65 (3.15 to 3.88)</p></td>" in site.html("guide")
    assert re.findall(r"<p>(.*Medians.*)</p>", site.html("guide")) == ["Medians of 40 rounds."]


def test_failed_calls_are_told(site: Site):
    """Where calls failed, the table says how many of a hundred."""
    results = json.loads(json.dumps(RESULTS))
    failed = {"median": 49.2, "low": 40.0, "high": 60.0}
    results["rows"]["noop"]["contestants"]["channels.db"]["failed_percent"] = failed
    site.write_sealed(bench.RESULTS, results)
    site.add("docs/guide.md", "\n```{benchmark} noop\n```\n")
    assert site.build() == []
    assert re.findall(r"<td><p>(.*?)</p></td>", site.html("guide")) == [
        *("ormbridge", "71,234", "14.2", "3.65 (3.15 to 3.88)", "0 %"),
        *("channels.db", "19,522", "41.9", "1.00", "49 %"),
    ]
    assert "<p>failed</p></th>" in site.html("guide")


def test_machine(site: Site):
    """The machine, the versions and the day are told."""
    site.add("docs/guide.md", "\n```{benchmark} machine\n```\n")
    assert site.build() == []
    assert (
        "Measured on 2025-01-31, on 2 CPUs (Abacus 2, Linux x86_64) that the database shares, "
        "with Python 3.11.2 and Django 5.2, on the event loop of asyncio. The load of the machine "
        "was 0.3 when it began."
    ) in site.html("guide")


def test_unknown_row_is_refused(site: Site):
    """A row that was not measured fails the build; the message says which were."""
    site.add("docs/guide.md", "\n```{benchmark} orm\n```\n")
    (warning,) = site.build()
    assert f"{bench.RESULTS} has no row 'orm' (rows: noop); {bench.REMEDY}" in warning


def test_missing_results_are_refused(site: Site):
    """Without results the build fails and says how to get them."""
    site.path(bench.RESULTS).unlink()
    site.add("docs/guide.md", "\n```{benchmark} noop\n```\n")
    (warning,) = site.build()
    assert f"{bench.RESULTS} is missing; {bench.REMEDY}" in warning


def test_edited_results_are_refused(site: Site):
    """A figure that was changed by hand fails the build."""
    site.replace(bench.RESULTS, "71234.5", "91234.5")
    site.add("docs/guide.md", "\n```{benchmark} noop\n```\n")
    (warning,) = site.build()
    assert (
        f"{bench.RESULTS} was changed by hand and is not what was recorded; {bench.REMEDY}"
    ) in warning
