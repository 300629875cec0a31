"""The ``figure`` role."""

import json

import pytest

from docs._ext import bench
from tests.docs.conftest import EXTENSIONS, Site

RESULTS = {
    "date": "2025-01-31",
    "servers": {"gunicorn": {"4": {"requests": {"median": 1234.4, "low": 1e3, "high": 2e3}}}},
}


@pytest.fixture(autouse=True)
def _role(monkeypatch: pytest.MonkeyPatch, site: Site):
    monkeypatch.setattr("tests.docs.conftest.EXTENSIONS", [*EXTENSIONS, "bench"])
    site.write_sealed(bench.STACK, RESULTS)


def test_figure_stands_in_a_sentence(site: Site):
    """A figure is looked up by its keys; a page that shows it is built again when it changes."""
    site.add("docs/guide.md", "\nOn {figure}`date`: {figure}`servers.gunicorn.4.requests`.\n")
    assert site.build() == []
    assert "On 2025-01-31: 1,234." in site.html("guide")
    changed = json.loads(json.dumps(RESULTS).replace("1234.4", "1300.0"))
    site.write_sealed(bench.STACK, changed)
    assert site.build() == []
    assert "On 2025-01-31: 1,300." in site.html("guide")


@pytest.mark.parametrize("key", ["servers.daphne.4.requests", "servers.gunicorn.4"])
def test_unknown_figure_is_refused(site: Site, key: str):
    """What the results do not have is an error that says how to get it."""
    site.add("docs/guide.md", f"\nIt does {{figure}}`{key}`.\n")
    (warning,) = site.build()
    assert f"docs/_recorded/stack.json: '{key}': KeyError" in warning
    assert "run 'nox -s bench-deployment'" in warning


def test_edited_results_are_refused(site: Site):
    """A figure that was changed by hand is not shown."""
    site.add("docs/guide.md", "\nIt does {figure}`servers.gunicorn.4.requests`.\n")
    site.replace(bench.STACK, "1234.4", "9999.9")
    (warning,) = site.build()
    assert "was changed by hand" in warning
    assert "9,999" not in site.html("guide")
