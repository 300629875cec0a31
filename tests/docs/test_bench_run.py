"""What the benchmark does with contestants that hang or fail, and when it writes its results."""

import json
from argparse import Namespace

import pytest

from tests.bench import UNFINISHED
from tests.bench import __main__ as bench
from tests.bench.programs import DidNotFinishError, Program
from tests.bench.rows import ANYIO, CHANNELS, OURS, ROWS
from tests.core.gate import GUARD

#: Seconds that a contestant has here.
BOUND = 3
ANSWERS = """
import json, sys

print("warm", flush=True)
turn = {"calls": 10, "failed": 0, "seconds": 1.0, "cpu": 0.5, "peak_mib": 50}
for line in sys.stdin:
    print(json.dumps(turn), flush=True)
"""
HANGS = "import threading; threading.Event().wait()"
HANGS_IN_ITS_TURN = f"""
import sys

print("warm", flush=True)
sys.stdin.readline()
print("error connecting", file=sys.stderr)
{HANGS}
"""
HANGS_WITH_ONE_CALLER = ANSWERS.replace(
    "sys.stdin:\n", f"sys.stdin:\n    if line.split()[1] == '1':\n        {HANGS}\n"
)
FAILS = "raise SystemExit('no module')"


@pytest.fixture
def contestants(monkeypatch):
    """Return a function that sets the programs of some contestants; those of the others answer."""
    programs = {}

    def start(row, name, options, environment):
        return Program("-c", programs.get(name, ANSWERS))

    monkeypatch.setattr(bench, "start", start)
    return programs.update


def options(*names, **changes):
    given = {"rounds": 2, "processes": 2, "seconds": 0.1, "bound": BOUND, "loop": "asyncio"}
    return Namespace(**{**given, "against": None, "only": list(names), "json": None, **changes})


def rows_of(*names):
    return {name: {**ROWS[name], "contestants": [OURS, CHANNELS, ANYIO]} for name in names}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (HANGS, "no answer in 3 s"),
        (HANGS_IN_ITS_TURN, "no answer in 3 s: error connecting"),
        (FAILS, "it ended with status 1: no module"),
    ],
)
def test_others_go_on_without_who_does_not_answer(contestants, program, reason):
    """A contestant that hangs is ended with a reason, once; the others have all of their rounds."""
    contestants({CHANNELS: program})
    rows = rows_of("noop")
    found, lost, took = bench.rounds_of(rows, options(), {})
    assert lost == {"noop": {CHANNELS: reason}}
    assert [sorted(turns) for turns in found["noop"]] == 4 * [[ANYIO, OURS]]
    said = bench.summary(rows["noop"], found["noop"], lost["noop"], took["noop"])
    assert said["contestants"][CHANNELS] == {UNFINISHED: reason}
    assert said["contestants"][ANYIO]["ratio"]["median"] == 1.0


@pytest.mark.parametrize("fresh", [{}, {"fresh": True}])
def test_who_hangs_in_one_row_takes_part_in_the_others(contestants, fresh):
    """Who was ended in one row has another process in the rows that shared it."""
    contestants({CHANNELS: HANGS_WITH_ONE_CALLER})
    rows = {name: {**row, **fresh} for name, row in rows_of("noop", "one").items()}
    found, lost, _ = bench.rounds_of(rows, options(), {})
    assert lost == {"noop": {}, "one": {CHANNELS: "no answer in 3 s"}}
    assert [len(turns) for turns in found["noop"]] == [3, 3, 3, 3]
    assert [len(turns) for turns in found["one"]] == [2, 2, 2, 2]


def test_row_that_the_server_has_no_connections_for(contestants, monkeypatch):
    """Who would have too few connections is not started, and the row says so."""

    def start(*arguments):
        raise DidNotFinishError("the server had 3 connections left, and not 50")

    monkeypatch.setattr(bench, "start", start)
    rows = {"connections-50": {**ROWS["connections-50"], "contestants": [OURS]}}
    found, lost, took = bench.rounds_of(rows, options(), {})
    said = bench.summary(*(each["connections-50"] for each in (rows, found, lost, took)))
    reason = "the server had 3 connections left, and not 50"
    assert said["contestants"] == {OURS: {UNFINISHED: reason}}


def test_program_is_ended_with_its_block(capfd):
    """A program that does not end by itself is ended; what it wrote to standard error is shown."""
    script = f"import sys; print('error', file=sys.stderr); print('warm', flush=True); {HANGS}"
    with Program("-c", script) as program:
        assert program.answer(GUARD) == "warm"
    assert program.process.returncode < 0
    assert capfd.readouterr().err == "error\n"


def test_rows_of_more_connections_than_there_are(monkeypatch, capsys):
    """Of the rows for which the server has too few connections, the first is measured."""
    monkeypatch.setattr(bench, "free_connections", lambda: 30)
    names = ["noop", "connections-100", "connections-20", "connections-50"]
    assert bench.possible(names) == ["noop", "connections-20", "connections-50"]
    said = "the server has 30 connections free: left out are connections-100\n"
    assert capsys.readouterr().out == said
    assert bench.possible(["noop"]) == ["noop"]


def test_results_are_written_after_each_row(contestants, monkeypatch, tmp_path):
    """What was measured is in the file, with its words, when a later row breaks the run off."""
    path, rounds_of, rows = tmp_path / "new" / "bench.json", bench.rounds_of, []

    def breaks_off_at_the_second(*arguments):
        if rows:
            raise KeyboardInterrupt
        rows.extend(arguments[0])
        return rounds_of(*arguments)

    monkeypatch.setattr(bench, "rounds_of", breaks_off_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        bench.measure(options("noop", "websocket", json=path, rounds=1, processes=1))
    written = json.loads(path.read_text(encoding="utf-8"))
    assert list(written["rows"]) == rows == ["noop"]
    assert written["sentences"]["call"].startswith("A call that does nothing, 50 callers: ")
    assert "noop" in written["shown"]
