"""What the benchmark says of its figures: sentences, tables, charts."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.bench import UNFINISHED, charts, report
from tests.bench.rows import BOUND, CHANNELS, GREEN, NATIVE, OURS, PLAIN, POOL, ROWS

ROOT = Path(__file__).parents[2]
RECORDED = json.loads((ROOT / "docs/_recorded/bench.json").read_text(encoding="utf-8"))


HANGS = "no answer in 120 s"


def spread(value):
    return {"median": value, "low": value, "high": value}


def result(name, **rates):
    """Return row *name* as it is when the contestants make so many calls, or do not finish."""
    ours = rates.get(OURS)
    contestants = {
        each: {UNFINISHED: HANGS}
        if rate is None
        else {
            "calls_per_second": spread(rate),
            "cpu_us_per_call": spread(1e6 / rate),
            "failed_percent": spread(0),
            "peak_mib": spread(50),
            **({} if each == OURS or not ours else {"ratio": spread(ours / rate)}),
        }
        for each, rate in rates.items()
    }
    reach = {each: mark for each, mark in ROWS[name]["reach"].items() if each in rates}
    return {**ROWS[name], "reach": reach, "contestants": contestants, "rounds": 20, "took": 1.0}


def results(**rows):
    return report.Results({"rows": rows})


# The page.


def test_what_is_recorded_is_what_the_figures_say():
    """Sentences, tables and charts are those that the recorded figures give, word for word."""
    assert report.with_words(RECORDED) == RECORDED


def test_all_that_is_measured_is_recorded():
    """The results have every row, and every sentence and chart that is made of them.

    They lack rows of more connections than the server had.
    """
    rows = list(RECORDED["rows"])
    most = max(ROWS[name].get("connections", 0) for name in rows)
    assert rows == [name for name in ROWS if ROWS[name].get("connections", 0) <= most]
    assert set(report.SENTENCES) < set(RECORDED["sentences"])
    assert set(report.CHARTS) < set(RECORDED["shown"])


def test_a_mark_that_was_missed_has_a_cause():
    """What a whole run missed is published with its cause."""
    assert not report.is_whole(RECORDED) or report.unexplained(RECORDED) == []


def test_page_has_no_figure_of_its_own():
    """No sentence of the page has a figure that was written by hand."""
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    claims = (
        r"\d+[.,]\d|\d ?%|\btimes as\b|\b(?:faster|slower|twice|(?<!middle )half|fewer|ahead of)\b"
    )
    prose = re.sub(r"\{bench\}`[^`]*`|10,000|127\.0\.0\.1", "", page)
    assert re.findall(claims, prose) == []


# The wording.


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (0.5, "50 % fewer calls than x"),
        (0.9, "10 % fewer calls than x"),
        (0.98, "about as many calls as x"),
        (1.02, "about as many calls as x"),
        (1.25, "25 % more calls than x"),
        (2.21, "2.2 times as many calls as x"),
    ],
)
def test_wording_follows_the_ratio(ratio, said):
    """Who is ahead is told by the ratio, and a difference within the noise is none."""
    assert report.versus(ratio, "x", "calls") == said


def test_sentence_turns_when_the_figures_do():
    """The sentence on a request says that it loses where it does."""
    rates = {POOL: 100, PLAIN: 200}
    ahead = report.request(results(http=result("http", **{OURS: 220}, **rates)))
    behind = report.request(results(http=result("http", **{OURS: 80}, **rates)))
    assert "2.2 times as many requests a second as with Django's pool" in ahead
    assert "20 % fewer requests a second than with Django's pool" in behind
    assert "60 % fewer than with plain ASGI" in behind


def test_everybody_ahead_is_told():
    """The table of those ahead has all of them, and nobody else."""
    rates = {OURS: 100, CHANNELS: 80, NATIVE: 160}
    found = results(orm=result("orm", **rates), noop=result("noop", **{OURS: 90, "anyio": 100}))
    assert report.ahead(found)["rows"] == [
        [NATIVE, "a query; callers: 50: 1.6 times as many"],
        ["anyio", "a call by 50 callers: 11 % more"],
    ]
    rates = {1: 120, 5: 130, 10_000: 105}
    rows = {f"orm-{n}": result(f"orm-{n}", **{OURS: 100, NATIVE: rates[n]}) for n in rates}
    said = "a query; callers: 1, 5 and 10,000: 5 % more to 30 % more"
    assert report.ahead(results(**rows))["rows"] == [[NATIVE, said]]
    nobody = results(orm=result("orm", **{OURS: 100, CHANNELS: 80}))
    assert report.ahead(nobody)["rows"] == [["nobody", "in any row"]]


def test_what_takes_less_is_told():
    """So is who is less late, or takes less memory."""
    row = result("delay", **{OURS: 100, CHANNELS: 80})
    row["contestants"][OURS] |= {"p99_ms": spread(3.0), "p50_ms": spread(1.0)}
    row["contestants"][CHANNELS] |= {"p99_ms": spread(2.0), "p50_ms": spread(1.0)}
    said = "its loop is late by less at the 99th percentile: 2.0 ms, and 3.0 ms here"
    assert report.ahead(results(delay=row))["rows"] == [[CHANNELS, said]]


def test_missed_mark_is_told_with_its_cause(monkeypatch):
    """A mark that was missed has its cause beside it, or that none is known."""
    found = results(noop=result("noop", **{OURS: 100, CHANNELS: 80}))
    assert report.reached(found) == "1 mark was set before the run; 1 was missed."
    title = ROWS["noop"]["title"]
    mark = [title, "at least 2.50 of channels.db", "1.25"]
    assert report.goals(found)["rows"] == [[*mark, "missed: not known yet"]]
    assert report.unexplained({"rows": found.rows}) == [("noop", CHANNELS)]
    monkeypatch.setitem(report.CAUSES, ("noop", CHANNELS), "the lock")
    assert report.goals(found)["rows"] == [[*mark, "missed: the lock"]]
    assert report.unexplained({"rows": found.rows}) == []


def test_sentence_of_a_row_that_was_not_measured_is_left_out():
    """A run of some rows has the words of these: a page that needs others is refused."""
    whole = {
        **RECORDED,
        "rows": {"noop": result("noop", **{OURS: 100, CHANNELS: 50, "asyncio.to_thread": 90})},
    }
    words = report.with_words(whole)
    assert set(words["sentences"]) == {"machine", "reached", "call"}
    assert set(words["shown"]) == {"goals", "ahead", "everything", "noop"}


def test_growth_names_the_least_and_the_most():
    """The sentence on callers says where ormbridge gains least, and where most."""
    found = {
        f"orm-{callers}": result(f"orm-{callers}", **{OURS: rate, CHANNELS: 100})
        for callers, rate in {1: 90, 5: 130, 10_000: 160}.items()
    }
    found["orm"] = result("orm", **{OURS: 140, CHANNELS: 100})
    assert report.growth(results(**found)) == (
        "From 1 to 10,000 callers ormbridge makes, where that is least, 10 % fewer than "
        "channels.db (1 caller), and where it is most, 1.6 times as many as channels.db "
        "(10,000 callers)."
    )


# Who did not finish.


def test_cell_without_a_figure_says_why():
    """Who did not finish has the reason in the table, nothing in its other cells, and no ratio."""
    row = result("orm", **{OURS: 100, CHANNELS: 80, NATIVE: None})
    why = f"did not finish: {HANGS}"
    assert report.shown(row)["rows"][1:] == [
        [CHANNELS, "80", "12,500.0", "1.25 (1.25 to 1.25)"],
        [NATIVE, why, "", ""],
    ]
    everything = report.everything(results(orm=row))["rows"]
    assert everything[-1] == [ROWS["orm"]["title"], NATIVE, why, "", ""]


@pytest.mark.parametrize("lost", [OURS, CHANNELS])
def test_mark_is_missed_by_who_did_not_finish(lost):
    """A mark is missed where one of the two did not finish: no figure says that it was reached."""
    row = result("noop", **{OURS: 100, CHANNELS: 10, lost: None})
    ((_, _, seen, well),) = report.marks(row)
    assert (seen, well) == ("no figure", False)


def test_marks_of_green():
    """What runs on the loop's thread is held against others by its own figures."""
    rates = {OURS: 100, GREEN: 120, NATIVE: 80}
    seen = {other: (seen, well) for other, _, seen, well in report.marks(result("orm-1", **rates))}
    assert seen[GREEN, NATIVE] == ("1.50", True)
    rates = {OURS: 100, GREEN: 84, NATIVE: 80}
    seen = {other: (seen, well) for other, _, seen, well in report.marks(result("orm-1", **rates))}
    assert seen[GREEN, NATIVE] == ("1.05", False)
    row = result("delay", **{OURS: 100, GREEN: 100})
    for late, well in ((2.5, True), (2.6, False)):
        row["contestants"][GREEN]["p99_ms"] = row["contestants"][OURS]["p99_ms"] = spread(late)
        found = {other: verdict for other, _, _, verdict in report.marks(row)}
        assert found[GREEN, "p99_ms"] is well
    row["contestants"][GREEN] = {UNFINISHED: HANGS}
    assert [seen for other, _, seen, _ in report.marks(row) if other[0] == GREEN] == ["no figure"]


@pytest.mark.parametrize("lost", ["ormbridge", "plain Channels"])
def test_mark_of_memory_is_missed_too(lost):
    """So is one on memory, which is held against the row without the bridge."""
    row = result("idle", **{OURS: 100, "plain Channels": 100})
    row["contestants"] = {name: {"kib": spread(5.0)} for name in row["contestants"]}
    assert [well for *_, well in report.marks(row)] == [True]
    row["contestants"][lost] = {UNFINISHED: HANGS}
    assert [(seen, well) for *_, seen, well in report.marks(row)] == [("no figure", False)]


def test_all_are_ahead_where_ormbridge_did_not_finish():
    """Where ormbridge did not finish, those that did are told as ahead."""
    found = results(noop=result("noop", **{OURS: None, CHANNELS: 10, "anyio": None}))
    said = f"{ROWS['noop']['title']}: ormbridge did not finish"
    assert report.ahead(found)["rows"] == [[CHANNELS, said]]


def by_connections(**rates):
    rows = {
        f"connections-{number}": result(
            f"connections-{number}", **{name: rates[name][i] for name in rates}
        )
        for i, number in enumerate((1, 50, 100))
    }
    return results(**rows)


def test_sentence_says_who_did_not_finish():
    """The sentence and the table of a chart of lines say who did not finish, and with how many."""
    found = by_connections(
        **{OURS: (100, 200, None), BOUND: (100, 300, 400), NATIVE: (100, None, None)}
    )
    said = report.connections(found)
    assert "200 on 50: the most there were." in said
    assert "django-async-backend did not finish with 50 and 100 connections." in said
    assert "ormbridge did not finish with 100 connections." in said
    assert report.by_connections(found)["rows"] == [
        ["1", "100", "100", "100"],
        ["50", "200", "300", "did not finish"],
        ["100", "did not finish", "400", "did not finish"],
    ]


def test_sentence_says_what_the_server_had():
    """A row that had fewer connections than it wanted is told as the most that there were."""
    found = by_connections(**{OURS: (100, 200, 300)})
    assert "server" not in report.connections(found)
    found.rows["connections-100"]["connections"] = 88
    assert "The server had no more than 88 to give." in report.connections(found)


# The charts.


@pytest.mark.parametrize("name", report.CHARTS)
def test_chart_is_a_picture_with_words(name):
    """A chart is well-formed, says what it shows, and leaves colours to the style sheet."""
    picture = ET.fromstring(RECORDED["shown"][name]["svg"])
    assert picture.get("role") == "img"
    title, words = picture[0], picture[1]
    assert (picture.get("aria-labelledby"), picture.get("aria-describedby")) == (
        title.get("id"),
        words.get("id"),
    )
    assert all(each.text for each in (title, words))
    style = "".join(
        (ROOT / "docs/_static" / each).read_text() for each in ("bench.css", "site.css")
    )
    classes = {each for node in picture.iter() for each in node.get("class", "").split()}
    assert [each for each in classes if f".{each}" not in style] == []
    assert not re.search(r'(?:fill|stroke|color)="', RECORDED["shown"][name]["svg"])


def test_bar_is_as_long_as_its_figure():
    """The longest bar of a group leaves room for the figure; the others are in proportion."""
    svg = charts.bars("Speed", "Words", [("Calls", "/s", {CHANNELS: 25.0, OURS: 100.0})])
    assert re.findall(r'<rect width="(.*?)%"', svg) == ["20.00", "80.00"]
    assert re.findall(r'class="chart-end" x="99%" y="15">(.*?)<', svg) == ["25/s", "100/s"]


def test_bar_of_who_did_not_finish():
    """Who did not finish has words in the place of a figure, and no bar."""
    found = results(
        **{
            "http": result("http", **{OURS: 200, PLAIN: 100, POOL: 80}),
            "orm": result("orm", **{OURS: 100, BOUND: 120, CHANNELS: 50, NATIVE: None}),
            "orm-1": result("orm-1", **{OURS: 100, CHANNELS: 50}),
            "noop": result("noop", **{OURS: 100, CHANNELS: 50, "asyncio.to_thread": 90}),
        }
    )
    chart = report.gains(found)
    assert ["A query", NATIVE, "did not finish"] in chart["rows"]
    bar = chart["svg"].partition(f">{NATIVE}<")
    assert bar[2].startswith('/text><text class="chart-end" x="99%" y="15">did not finish</text>')
    assert bar[0].endswith('<rect width="0.00%" height="100%"/><text x="6" y="15"')
    assert report.ways(found)["rows"][-1] == ["", NATIVE, "did not finish"]


def test_line_leaves_out_what_is_not_there():
    """A contestant without a figure at a point has no mark there."""
    svg = charts.lines(
        "Speed", "Words", "callers", [1, 50], {OURS: [10.0, 20.0], CHANNELS: [5.0, None]}
    )
    assert re.findall(r"<title>(.*?)</title>", svg) == [
        "channels.db, 1 caller: 5 a second",
        "ormbridge, 1 caller: 10 a second",
        "ormbridge, 50 callers: 20 a second",
    ]


def test_line_is_broken_where_there_is_no_figure():
    """The line does not go on through a point whose figure is not known."""
    values = {OURS: [10.0, 20.0, 30.0], CHANNELS: [5.0, None, 6.0]}
    svg = charts.lines("Speed", "Words", "callers", [1, 50, 100], values)
    groups = re.findall(r'<g class="chart-line .*?">(.*?)</g>(?=<g class="chart-line|</svg>$)', svg)
    assert [group.count("<line ") for group in groups] == [0, 2]  # ormbridge comes last
