"""``nox -s new-example``: a question later there is an example that builds."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs._ext.record import markers, recordings, runs
from tests.core.gate import GUARD
from tests.docs.conftest import ROOT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy what an example and the site are made of, as far as git knows it."""
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, files):
        if (ROOT / name).exists():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in *copy*."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=copy,
        env={"PATH": "", "PYTHONPATH": f"{copy / 'src'}:{copy}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=4 * GUARD,
    )


def begin(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Begin an example in *copy*."""
    return run(copy, "docs/_scaffold/new_example.py", *arguments)


def test_example_of_a_page_and_of_a_new_one(copy: Path):
    """Both are recorded by their tests, and the site builds with them; the rest is not touched."""
    before = runs.load(copy).tests
    tests = [
        begin(copy, *arguments).stdout.strip()
        for arguments in [["transactions/greet_twice", "Twice"], ["rate_limits/token_bucket"]]
    ]
    assert tests == [
        "tests/guide/test_transactions.py::test_greet_twice",
        "tests/guide/test_rate_limits.py::test_token_bucket",
    ]
    recorded = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--record", *tests)
    assert recorded.returncode == 0, recorded.stdout
    for name in ("transactions/greet_twice", "rate_limits/token_bucket"):
        assert recordings.load(copy, name).output == ("Hello, ada",)
    after = runs.load(copy).tests
    assert {test: each for test, each in after.items() if test not in tests} == {
        test: each for test, each in before.items() if test in after
    }
    others = ["_*", "howto/*", "reference/*", "guide/[!rt]*", "[!ip]*.md"]
    built = run(
        copy,
        *("-m", "sphinx", "-q", "-n", "-E", "-D", f"exclude_patterns={','.join(others)}"),
        *("-c", ".", "docs", "out"),
    )
    new = [line for line in built.stderr.splitlines() if "greet_twice" in line or "rate" in line]
    assert (built.returncode, new) == (0, [])
    page = (copy / "out/guide/rate-limits.html").read_text(encoding="utf-8")
    assert "<h1>Rate limits" in page
    assert "<h2>Token bucket" in page
    assert 'guide/rate-limits.html#guide-test-rate-limits-test-token-bucket"' in page
    assert "<h2>Twice" in (copy / "out/guide/transactions.html").read_text(encoding="utf-8")
    assert "guide/rate-limits.html" in (copy / "out/index.html").read_text(encoding="utf-8")


def test_second_example_of_a_new_page_joins_the_first(copy: Path):
    """A page is begun once."""
    for name in ("rate_limits/one", "rate_limits/two"):
        assert begin(copy, name).returncode == 0
    page = (copy / "docs/guide/rate-limits.md").read_text(encoding="utf-8")
    assert page.count("\n## ") == 2
    assert page.startswith("# Rate limits\n")
    assert (copy / "docs/index.md").read_text(encoding="utf-8").count("guide/rate-limits\n") == 1
    tests = (copy / "tests/guide/test_rate_limits.py").read_text(encoding="utf-8")
    assert tests.count('"""The page') == 1
    assert tests.count("def test_") == 2


def test_example_of_a_how_to_page(copy: Path):
    """Its test stands in tests/howto, with those of the page."""
    assert begin(copy, "bots/second").stdout == "tests/howto/test_bots.py::test_second\n"
    tests = (copy / "tests/howto/test_bots.py").read_text(encoding="utf-8")
    assert tests.count("def test_second(") == 1
    assert "\n## Second\n" in (copy / "docs/howto/bots.md").read_text(encoding="utf-8")


def test_what_is_begun_runs_as_it_is_pasted(copy: Path, tmp_path: Path):
    """The skeleton is an example as the others are: a script that runs by itself."""
    begin(copy, "rate_limits/one")
    source = (copy / "examples/rate_limits/one.py").read_text(encoding="utf-8")
    (tmp_path / "one.py").write_text(markers.excerpt(source).text)
    assert run(copy, "-W", "error", str(tmp_path / "one.py")).stdout == "Hello, ada\n"


REFUSED = {
    "Transfer": "is no name: write page/what",
    "../transfer": "is no name: write page/what",
    "transactions/transfer": "examples/transactions/transfer.py is there already",
    "observing/json": "json.py, pasted, would hide Python's own module",
    "demo/start": "examples/demo belongs to no page",
    "recorded/start": "examples/recorded belongs to no page",
    "transactions/fix_is_the_block": "has a test_fix_is_the_block already",
}


@pytest.mark.parametrize("name", REFUSED)
def test_name_that_cannot_be_is_refused(copy: Path, name: str):
    """The message says why, and nothing was written."""
    before = sorted(copy.rglob("*"))
    refused = begin(copy, name)
    assert refused.returncode == 1
    assert REFUSED[name] in refused.stderr
    assert refused.stdout == ""
    assert sorted(copy.rglob("*")) == before
