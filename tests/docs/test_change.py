"""The ``change`` directive."""

import pytest

from docs._ext.record import recordings
from tests.docs.conftest import Site

CHANGE = "\n```{change} index/greeting index/farewell\n```\n"


@pytest.fixture(autouse=True)
def _second_example(site: Site):
    source = site.path("examples/index/greeting.py").read_text(encoding="utf-8")
    site.write("examples/index/farewell.py", source.replace("Hello, ", "Bye, "))
    recordings.save(site.root, "index/farewell", ["Bye, ada"])
    site.add("docs/guide.md", CHANGE + "\n```{example} index/farewell\n```\n")


def test_only_what_differs_is_shown(site: Site):
    """The line that goes and the one that comes, without markers, and nothing that stays."""
    assert site.build() == []
    assert site.code("guide")[0] == ('-    return f"Hello, {name}"\n+    return f"Bye, {name}"\n')


def test_change_does_not_count_as_showing_an_example(site: Site):
    """Both programs must stand on a page as a whole, too."""
    site.replace("docs/guide.md", "\n```{example} index/farewell\n```\n", "")
    assert any("no page shows examples/index/farewell.py" in each for each in site.build())


def test_example_that_is_not_there_is_refused(site: Site):
    """A wrong name fails the build, and the message says what is missing."""
    site.replace("docs/guide.md", "index/greeting index/farewell", "index/greeting index/hello")
    assert any("examples/index/hello.py does not exist" in each for each in site.build())
