"""What is on a page was run; what was run is on a page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs._ext.record import recordings
from tests.docs.conftest import EXTENSIONS, Site

ROOT = Path(__file__).parents[2]


def test_line_taken_from_an_example_makes_it_stale(site: Site):
    """An example that is not the one that was recorded is reported where it is shown."""
    site.build()
    site.replace("examples/index/greeting.py", 'print(greet("ada"))\n', "")
    expected = [
        "docs/index.md:5: WARNING: examples/index/greeting.py: example 'index/greeting' "
        "changed after its output was recorded; run: nox -s record [example]"
    ]
    assert site.build() == expected
    assert site.build() == expected, "the next build must not forget the warning"


def test_test_that_records_a_stale_example_is_named(site: Site):
    """What to run is the one test that hands over what the example printed, not all of them."""
    test = 'async def test_greeting(recorded):\n    recorded("index/greeting", "")\n'
    site.write("tests/guide/test_index.py", test)
    site.replace("examples/index/greeting.py", 'print(greet("ada"))\n', "")
    (warning,) = site.build()
    assert "run: nox -s record -- tests/guide/test_index.py::test_greeting [example]" in warning


def test_deleted_recording_is_missed(site: Site):
    """An example without a recording is reported where it is shown, in every build."""
    site.build()
    site.path("examples/recorded/index/greeting.json").unlink()
    expected = [
        "docs/index.md:5: WARNING: examples/index/greeting.py: example 'index/greeting' "
        "has no recording (examples/recorded/index/greeting.json is missing); run: nox -s record. "
        "If no test runs it, add one that calls recorded('index/greeting', ...) [example]"
    ]
    assert site.build() == expected
    assert site.build() == expected, "the next build must not forget the warning"


def test_recording_without_an_example_is_left_over(site: Site):
    """A recording whose example is gone is reported."""
    site.write("examples/recorded/index/gone.json", "{}")
    assert site.build() == [
        "WARNING: examples/recorded/index/gone.json: recording 'index/gone' has no example "
        "(examples/index/gone.py); delete examples/recorded/index/gone.json [example]"
    ]


def test_damaged_recording_is_refused(site: Site):
    """A recording that is no JSON is reported, not shown."""
    site.write("examples/recorded/index/greeting.json", "<<<<<<<")
    (warning,) = site.build()
    assert "examples/recorded/index/greeting.json is not a recording (JSONDecodeError" in warning
    assert "run: nox -s record" in warning


def test_edited_recording_is_refused(site: Site):
    """A recording says what was printed, to the last figure: one that was edited is refused."""
    recordings.save(site.root, "index/greeting", ["Hello, ada, after 0.11 s"])
    assert site.build() == []
    site.replace("examples/recorded/index/greeting.json", "0.11 s", "0.01 s")
    expected = [
        "docs/index.md:5: WARNING: examples/index/greeting.py: "
        "examples/recorded/index/greeting.json was changed by hand and is not what was recorded; "
        "run: nox -s record [example]"
    ]
    assert site.build() == expected
    assert site.build() == expected, "the next build must not forget the warning"
    assert len(site.code("index")) == 1, "nor may the page show it"


def test_example_that_no_page_shows_is_refused(site: Site):
    """An example is reported when the page that showed it no longer does."""
    site.build()
    site.replace("docs/index.md", "```{example} index/greeting\n:output:\n```\n", "")
    expected = [
        "WARNING: no page shows examples/index/greeting.py as a whole; "
        "show it with the 'example' directive or delete it [example]"
    ]
    assert site.build() == expected
    assert site.build() == expected, "the next build must not forget the warning"


def test_part_of_an_example_does_not_show_it(site: Site):
    """A page that shows a part only gives readers nothing that runs."""
    site.replace("docs/index.md", ":output:", ":part: call")
    (warning,) = site.build()
    assert "no page shows examples/index/greeting.py as a whole" in warning


def test_package_without_tests_is_refused(site: Site):
    """An application needs no page and no recording, but tests of its own."""
    site.write("examples/app/__init__.py", "")
    site.write("examples/app/server.py", "print('Hello')\n")
    (warning,) = site.build()
    assert warning == (
        "WARNING: no test starts examples/app; add one to tests/app or delete it [example]"
    )
    site.write("tests/app/test_server.py", "def test_starts(): pass\n")
    assert site.build() == []


STRAYS = {
    "fence": "```python\nprint(1)\n```",
    "console": "```pycon\n>>> 1\n```",
    "code-block": "```{code-block} py\nprint(1)\n```",
    "literalinclude": "```{literalinclude} ../examples/index/greeting.py\n:lines: 6\n```",
    "doctest": "```{eval-rst}\n>>> 1\n1\n```",
    "fence in a note": "````{note}\n```python\nprint(1)\n```\n````",
    "fence in a list": "- item\n\n  ```python\n  print(1)\n  ```",
    "fence without a language": "```\nimport os\n```",
    "fence that says text": "```text\nasync def f(): ...\n```",
}


@pytest.mark.parametrize("stray", STRAYS.values(), ids=STRAYS)
def test_stray_python_is_refused(site: Site, stray: str):
    """Python that no example brought in is reported, however it got there."""
    site.add("docs/guide.md", f"\n{stray}\n")
    expected = site.build()
    (warning,) = expected
    assert warning.startswith("docs/guide.md:")
    assert "Python that no test runs" in warning
    assert "move it to examples/<page>/<name>.py" in warning
    assert site.build() == expected, "the next build must not forget the warning"


OTHERS = {
    "shell": "```console\n$ python -m pip install ormbridge\n```",
    "output": "```text\nTraceback (most recent call last):\n```",
    "setting": "```\nASGI_THREADS=10\n```",
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_what_is_not_python_may_stand_on_a_page(site: Site, other: str):
    """Commands and outputs are no business of the closed set."""
    site.add("docs/guide.md", f"\n{other}\n")
    assert site.build() == []


def test_parallel_build_that_warns_fails(site: Site):
    """Several processes read the pages, and ``-W`` makes each of the warnings an error."""
    for number in range(12):  # Sphinx reads a few pages in one process whatever it is told
        site.write(f"docs/page{number}.md", f"---\norphan: true\n---\n# Page {number}\n")
    site.add("docs/page3.md", "\nOne.[^gone]\n\n[^gone]: tests/test_greeting.py::test_gone\n")
    site.write("examples/index/unshown.py", "")
    extensions = ["myst_parser", *(f"docs._ext.{each}" for each in EXTENSIONS)]
    site.write("conf.py", f"extensions = {extensions!r}\nhtml_theme = 'basic'\n")
    command = [sys.executable, "-m", "sphinx", "-j", "2", "-W", "--keep-going", "-c", ".", "docs"]
    finished = subprocess.run(
        [*command, "out"],
        cwd=site.root,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 1
    # Only a process that reads several pages names the first and the last of them.
    assert re.search(r"reading sources.* \.\. ", finished.stdout), "the build was not parallel"
    assert "docs/page3.md:6: WARNING: claim: no test" in finished.stderr
    assert "no page shows examples/index/unshown.py" in finished.stderr
    assert "example 'index/unshown' has no recording" in finished.stderr
    assert len(finished.stderr.splitlines()) == 3
    assert "test-greeting-test-greets" in site.html("proven/index")
