"""The ``timeline`` directive."""

import re

import pytest

from docs._ext.record import spans
from docs._ext.record.spans import Span
from tests.docs.conftest import EXTENSIONS, Site

ENVIRONMENT = {
    "database": "SQLite 3.40.1",
    "python": "3.11.2",
    "django": "5.2",
    "channels": "",
    "asgiref": "3.13.0",
}
SHOWN = "\n```{timeline} index/greeting\n:caption: Three greetings, *two* threads\n```\n"
#: Two sockets take turns on one thread, a third has a thread and a connection of its own.
SPANS = (
    Span("greet", "socket 1", "worker-1", (1,), 0.0, 0.0, 0.1),
    Span("greet", "socket 3", "worker-2", (2,), 0.0, 0.0, 0.05),
    Span("greet", "socket 2", "worker-1", (1,), 0.0, 0.1, 0.2),
    Span("", "socket 3", "worker-2", (2,), 0.0, 0.0, 0.2, held=True),
)


def record(site: Site, name: str = "index/greeting", found: tuple[Span, ...] = SPANS) -> None:
    """Write the timeline *name*."""
    spans.save(site.root, name, found, ENVIRONMENT, "2025-01-31")


@pytest.fixture(autouse=True)
def _directive(monkeypatch: pytest.MonkeyPatch, site: Site):
    monkeypatch.setattr("tests.docs.conftest.EXTENSIONS", [*EXTENSIONS, "timeline"])
    record(site)
    site.add("docs/guide.md", SHOWN)


def figures(html: str, name: str) -> list[tuple[str, ...]]:
    """Return x and width of each bar of the class *name*, and what is said of it."""
    bar = re.compile(
        rf'<svg class="timeline-{name} timeline-colour-(\d)" x="([\d.]+)%" y="\d+" '
        r'width="([\d.]+)%" height="\d+"><title>(.*?)</title>'
    )
    return bar.findall(html)


def test_bar_is_where_its_call_was(site: Site):
    """A bar begins and ends where its call did; each socket has its colour."""
    assert site.build() == []
    assert figures(site.html("guide"), "call") == [
        ("0", "0.000", "50.000", "socket 1: greet, 0 to 100 ms, on worker-1"),
        ("2", "50.000", "50.000", "socket 2: greet, 100 to 200 ms, on worker-1"),
        ("1", "0.000", "25.000", "socket 3: greet, 0 to 50 ms, on worker-2"),
    ]


def test_held_thread_is_drawn_behind_its_calls(site: Site):
    """A thread that is held has a bar of its own, before that of the call."""
    site.build()
    html = site.html("guide")
    assert figures(html, "held") == [
        ("1", "0.000", "100.000", "socket 3: holds the thread, 0 to 200 ms, on worker-2")
    ]
    assert html.index("timeline-held") < html.index("socket 3: greet, 0 to 50 ms")


def test_lane_for_each_thread(site: Site):
    """Threads have their lanes in the order in which they were first used."""
    site.build()
    html = site.html("guide")
    assert re.findall(r">(worker-\d)</text>", html) == ["worker-1", "worker-2"]
    assert html.count('class="timeline-lane"') == 2


def test_waiting_calls_are_counted(site: Site):
    """The picture shows how many calls wait, and until when."""
    site.build()
    html = site.html("guide")
    assert "waiting calls: 1 at most" in html
    assert re.findall(r'"timeline-waiting" x="(.*?)" y=".*?" width="(.*?)"', html) == [
        ("0.000%", "50.000%")
    ]


def test_nothing_waits(site: Site):
    """Where no call waited long enough to be seen, there is nothing about waiting."""
    record(site, found=(Span("greet", "socket 1", "worker-1", (), 0.0, 0.001, 0.1),))
    assert site.build() == []
    assert "waiting" not in site.html("guide")


def test_picture_has_a_name_and_a_description(site: Site):
    """A screen reader tells the caption and what is to be seen."""
    site.build()
    html = site.html("guide")
    (picture,) = re.findall(r'<svg class="timeline-picture" role="img".*?>', html)
    names = re.findall(r'aria-(?:labelledby|describedby)="(.*?)"', picture)
    told = [re.findall(rf'<(?:title|desc) id="{name}">(.*?)<', html) for name in names]
    assert told == [
        ["Three greetings, two threads"],
        ["3 calls on 2 threads, 2 connections, 2 at a time at most, all done after 200 ms."],
    ]


def test_figures_are_a_table_too(site: Site):
    """Behind the picture is a table that says the same, folded."""
    site.build()
    html = site.html("guide").partition("<details>")[2].partition("</details>")[0]
    cells = re.findall(r"<td><p>(.*?)</p></td>", html)
    assert [cells[i : i + 7] for i in range(0, len(cells), 7)] == [
        ["socket 1", "greet", "worker-1", "1", "0", "0", "100"],
        ["socket 3", "greet", "worker-2", "2", "0", "0", "50"],
        ["socket 2", "greet", "worker-1", "1", "0", "100", "200"],
        ["socket 3", "holds the thread", "worker-2", "2", "0", "0", "200"],
    ]


def test_environment_is_told(site: Site):
    """The day and the versions of the run stand below the picture."""
    site.build()
    said = "Recorded on 2025-01-31 with Python 3.11.2, Django 5.2, asgiref 3.13.0 and SQLite 3.40.1"
    assert f"{said}." in site.html("guide")


def test_scale_of_another(site: Site):
    """Two pictures on one scale can be compared: the longest fills the width."""
    record(site, "index/greeting-slow", (Span("greet", "socket 1", "worker-1", (), 0.0, 0.0, 0.4),))
    site.replace("docs/guide.md", ":caption:", ":scale: index/greeting-slow\n:caption:")
    site.add("docs/guide.md", "\n```{timeline} index/greeting-slow\n:caption: One greeting\n```\n")
    assert site.build() == []
    widths = [width for _, _, width, _ in figures(site.html("guide"), "call")]
    assert widths == ["25.000", "25.000", "12.500", "100.000"]


def test_label_fits_its_bar(site: Site):
    """A bar has the longest label that fits on a narrow screen, or its number, or none."""
    found = [
        Span("greet", f"socket {i}", "worker-1", (), 0.0, began, ended)
        for i, (began, ended) in enumerate([(0, 0.5), (0.5, 0.7), (0.8, 0.9), (0.9, 0.901)], 1)
    ]
    record(site, found=(*found, Span("greet", "", "worker-1", (), 0.9, 0.99, 1.0)))
    assert site.build() == []
    labels = re.findall(r'<text x="2" y="12">(.*?)</text>', site.html("guide"))
    assert labels == ["socket 1: greet", "socket 2", "3"]


def test_names_are_escaped(site: Site):
    """What stands in a name is text, never a part of the page."""
    record(site, found=(Span("<lambda>", "socket 1", "<b>", (), 0.0, 0.0, 0.1),))
    assert site.build() == []
    assert "<lambda>" not in site.html("guide")
    assert "<b>" not in site.html("guide")


def test_missing_recording_is_refused(site: Site):
    """Without its recording the build fails, in this build and in the next."""
    spans.timeline_path(site.root, "index/greeting").unlink()
    expected = [
        "docs/guide.md:5: WARNING: timeline 'index/greeting' is not recorded "
        "(examples/recorded/index/greeting.timeline.json is missing); run: nox -s record [timeline]"
    ]
    assert site.build() == expected
    assert site.build() == expected


def test_example_changed_after_the_recording(site: Site):
    """A timeline that is older than its example fails the build."""
    site.build()
    site.add("examples/index/greeting.py", "\nprint('again')\n")
    expected = (
        "docs/guide.md:5: WARNING: timeline 'index/greeting' is older than its example; "
        "run: nox -s record [timeline]"
    )
    assert expected in site.build()
    assert expected in site.build(), "the next build must not forget the warning"


def test_damaged_recording_is_refused(site: Site):
    """A file that is no timeline is named."""
    site.write("examples/recorded/index/greeting.timeline.json", "{}")
    (warning,) = site.build()
    assert "examples/recorded/index/greeting.timeline.json is not a timeline" in warning


def test_edited_recording_is_refused(site: Site):
    """A call that was made shorter by hand fails the build."""
    path = spans.timeline_path(site.root, "index/greeting")
    ended = str(SPANS[0].ended)
    path.write_text(path.read_text().replace(f'"ended": {ended}', '"ended": 0.07', 1))
    assert site.build() == [
        "docs/guide.md:5: WARNING: examples/recorded/index/greeting.timeline.json was changed by "
        "hand and is not what was recorded; run: nox -s record [timeline]"
    ]


def test_timeline_that_no_page_shows_is_refused(site: Site):
    """A recording that is left over fails the build, whether its example is there or not."""
    record(site, "index/greeting-slow")
    path = "examples/recorded/index/greeting-slow.timeline.json"
    expected = [
        f"WARNING: {path}: no page shows the timeline 'index/greeting-slow'; show it with the "
        "'timeline' directive or delete it [timeline]"
    ]
    assert site.build() == expected
    assert site.build() == expected


def test_caption_is_asked_for(site: Site):
    """A picture without a caption says nothing to who cannot see it."""
    site.replace("docs/guide.md", ":caption: Three greetings, *two* threads\n", "")
    assert "timeline 'index/greeting' has no caption" in "".join(site.build())


def test_page_is_read_again_when_its_timeline_changes(site: Site):
    """A second build in the same directory shows the run as it is recorded now."""
    site.build()
    record(site, found=SPANS[:1])
    assert site.build() == []
    assert len(figures(site.html("guide"), "call")) == 1


def test_brief_picture_is_small_and_says_what_was_printed(site: Site):
    """In brief, bars are thin and without names, and the example's own words stand above them."""
    site.build()
    tall = int(re.findall(r'timeline-picture"[^>]* height="(\d+)"', site.html("guide"))[0])
    site.replace("docs/guide.md", ":caption:", ":brief:\n:caption:")
    assert site.build() == []
    html = site.html("guide")
    assert '<p class="timeline-printed">Hello, ada</p>' in html
    assert re.findall(r">(worker-\d)</text>", html) == []
    assert len(figures(html, "call")) == 3
    (brief,) = re.findall(r'timeline-picture"[^>]* height="(\d+)"', html)
    assert int(brief) < tall
    folded = html.partition("<details>")[2].partition("</details>")[0]
    assert "Recorded on 2025-01-31" in folded
    assert "3 calls on 2 threads" in folded
