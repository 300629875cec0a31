"""The ``example`` directive."""

import re
from html import unescape

import pytest

from docs._ext.record import recordings
from tests.docs.conftest import Site


def test_a_site_in_order_builds_without_a_warning(site: Site):
    """The small site that the other tests spoil has nothing to complain about."""
    assert site.build() == []


def test_whole_module_is_shown_without_markers(site: Site):
    """A page shows the example as it is, but for the markers, and what it printed."""
    site.build()
    shown = 'def greet(name):\n    return f"Hello, {name}"\n\n\nprint(greet("ada"))\n'
    assert site.code("index") == [shown, "Hello, ada\n"]


def test_marked_line_is_highlighted(site: Site):
    """The line with ``# <--``, and no other, is highlighted."""
    site.build()
    html = site.html("index")
    assert html.count('class="hll"') == 1
    line = html.partition('class="hll"')[2].partition("\n")[0]
    assert "return" in line
    assert "&lt;--" not in html


def test_caption_is_the_file_name(site: Site):
    """The file name stands above the code, the label above the output."""
    site.replace("docs/index.md", ":output:", ":output: says")
    site.build()
    html = site.html("index")
    assert '<span class="caption-text">examples/index/greeting.py</span>' in html
    assert '<p class="example-output-label">says</p>' in html


def test_part_shows_only_its_lines(site: Site):
    """``:part:`` shows what lies between the markers of this name."""
    site.add("docs/guide.md", "\n```{example} index/greeting\n:part: call\n```\n")
    assert site.build() == []
    assert site.code("guide") == ['print(greet("ada"))\n']
    assert "examples/index/greeting.py (call)" in site.html("guide")


def test_unknown_part_is_refused(site: Site):
    """The warning names page, line, example, the parts there are, and what to add."""
    site.add("docs/guide.md", "\n```{example} index/greeting\n:part: cell\n```\n")
    expected = [
        "docs/guide.md:5: WARNING: example 'index/greeting', examples/index/greeting.py: "
        "no part 'cell' (parts: call); enclose it in '# [cell]' and '# [/cell]' [example]"
    ]
    assert site.build() == expected
    assert site.build() == expected, "the next build must not forget the warning"


def test_unknown_example_is_refused(site: Site):
    """The warning names page, line and the file that does not exist."""
    site.add("docs/guide.md", "\n```{example} index/greetings\n```\n")
    expected = [
        "docs/guide.md:5: WARNING: no example 'index/greetings': "
        "examples/index/greetings.py does not exist; correct the name or add the file [example]"
    ]
    assert site.build() == expected


def test_output_of_an_example_that_prints_nothing_is_refused(site: Site):
    """A page cannot show an output that is not there."""
    recordings.save(site.root, "index/greeting", [])
    assert site.build() == [
        "docs/index.md:5: WARNING: example 'index/greeting' printed nothing when it was recorded; "
        "take ':output:' away [example]"
    ]


def test_page_is_read_again_when_its_example_changes(site: Site):
    """A second build in the same directory shows the example as it is now."""
    site.build()
    site.replace("examples/index/greeting.py", "Hello", "Good day")
    site.build()
    assert "Good day" in site.code("index")[0]


def test_page_is_read_again_when_its_recording_changes(site: Site):
    """A second build in the same directory shows the output as it is recorded now."""
    site.build()
    recordings.save(site.root, "index/greeting", ["Good day, ada"])
    assert site.build() == []
    assert site.code("index")[1] == "Good day, ada\n"


BEFORE = """\
def greet(name):
    print(name)
    return name


# [call]
print(greet("ada"))
# [/call]
"""


def shown_with_before(site: Site, before: str = BEFORE) -> str:
    """Show the example and what it was *before* in one block; return the HTML of the page."""
    site.write("examples/index/plain.py", before)
    recordings.save(site.root, "index/plain", ["ada", "ada"])
    page = "\n```{example} index/greeting\n:before: index/plain\n:output: prints\n```\n"
    site.add("docs/guide.md", page)
    assert site.build() == []
    return site.html("guide")


def test_before_and_after_in_one_block(site: Site):
    """What goes is marked apart from what comes; both print, and the one before is there whole."""
    html = shown_with_before(site)
    plain = re.sub(r"</?span[^>]*>", "", html)
    assert re.findall(r"<del>(.*?)\n</del>", plain, re.DOTALL) == [
        "    print(name)",
        "    return name",
    ]
    (come,) = re.findall(r"<ins>(.*?)\n</ins>", plain, re.DOTALL)
    assert unescape(come) == '    return f"Hello, {name}"'
    labels = re.findall(r'<p class="example-output-label">(.*?)</p>', html)
    assert labels == ["\N{MINUS SIGN} prints", "+ prints"]
    codes = site.code("guide")
    assert codes[1:] == [
        "ada\nada\n",
        "Hello, ada\n",
        BEFORE.replace("# [call]\n", "").replace("# [/call]\n", ""),
    ]


@pytest.mark.parametrize("more", ["", "channels"])
def test_one_that_comes_before_says_what_else_it_needs(site: Site, more: str):
    """Where it is folded away stands what the head of the block does not name."""
    html = shown_with_before(site, f"import {more}\n\n{BEFORE}" if more else BEFORE)
    (summary,) = re.findall(r"<summary>All of \N{MINUS SIGN}(.*?) <code>", html)
    assert summary == (f", which needs {more}:" if more else "")


def test_one_that_comes_before_is_shown_whole(site: Site):
    """It counts as shown: no warning asks for it, and a name that is not there is refused."""
    shown_with_before(site)
    site.replace("docs/guide.md", ":before: index/plain", ":before: index/plane")
    assert any("no example 'index/plane'" in line for line in site.build())
    assert any("no page shows examples/index/plain.py" in line for line in site.build())
