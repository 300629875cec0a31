"""The plugin that records what examples print and which tests passed."""

import importlib.metadata
import json
import sys
from pathlib import Path

import pytest

from docs._ext.record import markers, proofs, recordings, runs, seals
from tests.support.greeting import change, make_project, run

ROOT = Path(__file__).parents[1]


# The recordings of this project.


def test_every_example_has_its_recording():
    """Each example was run as it is now, and no recording is left over."""
    assert [problem.message for problem in recordings.problems(ROOT)] == []


def test_pasted_example_hides_no_module():
    """No example has the name of a module: a file ``json.py`` would be imported instead of it."""
    modules = sys.stdlib_module_names | importlib.metadata.packages_distributions().keys()
    names = {Path(name).name for name in recordings.examples(ROOT)}
    assert names & modules == set()


# Markers.


def test_markers_are_taken_out():
    """Highlight and part markers go; the highlighted lines are counted as they are shown."""
    source = "# [all]\na = 1  # <--\n# [one]\nb = 2\n# [/one]\nc = 3 # <--\n# [/all]\n"
    assert markers.excerpt(source) == markers.Excerpt("a = 1\nb = 2\nc = 3\n", (1, 3))
    assert markers.excerpt(source, "one") == markers.Excerpt("b = 2\n", ())


def test_part_loses_its_common_indentation():
    """A part from inside a class is shown from the left edge."""
    source = "class A:\n    # [body]\n    def f():\n        pass\n    # [/body]\n"
    assert markers.excerpt(source, "body").text == "def f():\n    pass\n"


def test_comments_that_are_no_markers_stay():
    """Only a comment that is a marker and nothing else is taken out."""
    source = "a = 1  # <-- see\n# [one] two\nb = '# [one]'\n"
    assert markers.excerpt(source) == markers.Excerpt(source, ())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("# [one]\n", "part 'one' is not closed; add '# [/one]'"),
        ("a\n# [/one]\n", "line 2: '# [/one]' ends a part that was not begun; add '# [one]' above"),
        ("# [one]\n# [/one]\n# [one]\n", "line 3: part 'one' is marked twice"),
    ],
)
def test_markers_that_do_not_match_are_refused(source: str, message: str):
    """The error names the marker, its line and the remedy."""
    with pytest.raises(markers.MarkerError) as caught:
        markers.excerpt(source)
    assert str(caught.value).startswith(message)


# Outputs.


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("took 0.51 s", "took 12.48 s"),
        ("took 51.25ms", "took 7.01ms"),
        ('"seconds": 0.0011645080003290786', '"seconds": 9.5e-05'),
        ("at 2026-01-31 10:00:00", "at 2025-12-01T09:59:59.125+00:00"),
        ("<Pool at 0x7f00aa11bb22>", "<Pool at 0x55d0c0ffee00>"),
        ("pid 12", "pid 34567"),
    ],
)
def test_measured_figures_are_not_compared(one: str, other: str):
    """Durations, timestamps, addresses and process ids differ from run to run."""
    assert recordings.masked([one]) == recordings.masked([other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("waited 30.0 s", "waited 10.0 s"),
        ("Django 5.2", "Django 6.1"),
        ("ormbridge-worker-1", "ormbridge-worker-2"),
        ("3 ms", "4 ms"),
        ("0.125", "0.126"),
        ("20 calls", "21 calls"),
    ],
)
def test_facts_are_compared(one: str, other: str):
    """A setting, a version, a name or a count is a fact."""
    assert recordings.masked([one]) != recordings.masked([other])


def test_paths_of_the_machine_are_cut(tmp_path: Path):
    """A traceback says where in the project, in a package or in Python, not where on a disk."""
    output = (
        f'  File "{tmp_path}/examples/a.py", line 1\n'
        '  File "/home/ada/env/lib/python3.12/site-packages/django/db/utils.py", line 2  \n'
        '  File "/usr/lib/python3.12/asyncio/runners.py", line 3\n\n'
    )
    assert recordings.lines_of(output, tmp_path) == (
        '  File "examples/a.py", line 1',
        '  File ".../site-packages/django/db/utils.py", line 2',
        '  File ".../lib/python3/asyncio/runners.py", line 3',
    )


def test_recording_is_left_alone_if_only_measured_figures_differ(tmp_path: Path):
    """Recording twice does not change a file for nothing; another source or output does."""
    example = recordings.example_path(tmp_path, "a")
    example.parent.mkdir()
    example.write_text("a\n")
    assert recordings.save(tmp_path, "a", ["took 0.51 s"])
    assert not recordings.save(tmp_path, "a", ["took 0.52 s"])
    assert recordings.load(tmp_path, "a").output == ("took 0.51 s",)
    assert recordings.save(tmp_path, "a", ["slept 0.52 s"])
    example.write_text("b\n")
    assert recordings.save(tmp_path, "a", ["slept 0.52 s"])
    assert recordings.load(tmp_path, "a").sha256 == recordings.digest("b\n")


# Tests that sentences name.

MODULE = '''\
import pytest


class TestPool:
    @pytest.mark.parametrize(
        "size", [1, 2]
    )
    async def test_size(self, size):
        """It has a size."""
        assert size


def test_plain():
    pass
'''


def test_proof_is_the_function_with_its_decorators(tmp_path: Path):
    """A test is found in its class, with docstring, line and source from the first decorator on."""
    (tmp_path / "test_a.py").write_text(MODULE)
    proof = proofs.find(tmp_path, "test_a.py::TestPool::test_size")
    assert (proof.path, proof.line, proof.docstring) == ("test_a.py", 5, "It has a size.")
    assert proof.source == (
        '@pytest.mark.parametrize(\n    "size", [1, 2]\n)\n'
        'async def test_size(self, size):\n    """It has a size."""\n    assert size\n'
    )


def test_proof_may_stand_in_an_if(tmp_path: Path):
    """A test that is defined only on certain databases is found."""
    (tmp_path / "test_b.py").write_text("if True:\n    def test_it():\n        pass\n")
    assert proofs.find(tmp_path, "test_b.py::test_it").source == "def test_it():\n    pass\n"


@pytest.mark.parametrize(
    "name", ["test_a.py", "test_a.py::TestPool", "test_a.py::test_size", "test_b.py::test_plain"]
)
def test_name_of_no_test_is_refused(tmp_path: Path, name: str):
    """A file, a class, a method without its class and an unknown file are no tests."""
    (tmp_path / "test_a.py").write_text(MODULE)
    with pytest.raises(proofs.UnknownTestError, match="test_"):
        proofs.find(tmp_path, name)


# The plugin, run on a small project.

project = pytest.fixture(make_project)


def outcomes(project: pytest.Pytester) -> dict[str, tuple[int, int]]:
    """Return what is recorded: test to (in how many environments it passed, and failed)."""
    tests = runs.load(project.path).tests
    return {name: (len(each.passed), len(each.failed)) for name, each in tests.items()}


GREETS, PLAIN = "test_greeting.py::test_greets", "test_greeting.py::test_plain"


def test_recorded_output_passes(project: pytest.Pytester):
    """After ``--record`` the same output passes, and the files say what was printed and passed."""
    run(project, "--record").assert_outcomes(passed=3)
    recording = json.loads((project.path / "examples/recorded/greeting.json").read_text())
    assert recording == {
        "example": "greeting.py",
        "sha256": recordings.digest("print('Hello, ada')\n"),
        "output": ["Hello, ada"],
        "seal": seals.seal({key: recording[key] for key in ("example", "sha256", "output")}),
    }
    assert outcomes(project) == {GREETS: (1, 0), PLAIN: (1, 0)}
    run(project).assert_outcomes(passed=3)


def test_another_output_fails(project: pytest.Pytester):
    """An output that is not the recorded one fails with the difference and the remedy."""
    run(project, "--record")
    change(project, "NAMES = {}", "NAMES = {'bob': 'bob'}")
    result = run(project)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        [
            "example 'greeting' prints something else*",
            "-Hello, ada",
            "+Hello, bob",
            "*nox -s record",
        ]
    )


def test_missing_recording_fails(project: pytest.Pytester):
    """Without a recording the test fails and names the file and the remedy."""
    result = run(project)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        ["*(examples/recorded/greeting.json is missing); run: nox -s record"]
    )


def test_stale_recording_fails(project: pytest.Pytester):
    """A recording of another source fails, though the output is the same."""
    run(project, "--record")
    change(project, "print", "print  ", "examples/greeting.py")
    result = run(project)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*'greeting' changed after its output was recorded; run: nox*"])


def test_example_must_exist(project: pytest.Pytester):
    """A test cannot record the output of an example that is not there."""
    (project.path / "examples/greeting.py").unlink()
    result = run(project, "--record")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["no example 'greeting': examples/greeting.py does not exist"])


def test_two_outputs_of_one_example_are_not_recorded(project: pytest.Pytester):
    """Parameters that print different things fail while recording, too."""
    change(project, "NAMES = {}", "NAMES = {'bob': 'bob'}")
    run(project, "--record").assert_outcomes(passed=2, failed=1)
    assert recordings.load(project.path, "greeting").output == ("Hello, ada",)
    assert outcomes(project) == {GREETS: (0, 1), PLAIN: (1, 0)}


def test_output_of_a_failed_test_is_not_recorded(project: pytest.Pytester):
    """What a test printed before it failed is no output to show."""
    change(project, "'ada')}\")", "'ada')}\")\n    assert not name")
    run(project, "--record").assert_outcomes(passed=1, failed=2)
    assert not recordings.recording_path(project.path, "greeting").exists()


@pytest.mark.parametrize("phase", ["setup", "teardown"])
def test_failure_around_the_test_counts(project: pytest.Pytester, phase: str):
    """A test whose fixture fails, before it or after it, did not pass."""
    fixture = {"setup": "assert False", "teardown": "yield; assert False"}[phase]
    source = f"@pytest.fixture\ndef broken():\n    {fixture}\n\ndef test_plain(broken):"
    change(project, "def test_plain():", source)
    run(project, "--record")
    assert outcomes(project) == {GREETS: (1, 0), PLAIN: (0, 1)}


@pytest.mark.parametrize("how", ["pytest.skip('no')", "pytest.xfail('no')"])
def test_skipped_parameter_leaves_the_test_out(project: pytest.Pytester, how: str):
    """A test that ran with some of its parameters only is not recorded as passed."""
    change(project, "    recorded(", f"    if name == 'bob': {how}\n    recorded(")
    run(project, "--record")
    assert outcomes(project) == {PLAIN: (1, 0)}


def test_unexpected_pass_leaves_the_test_out(project: pytest.Pytester):
    """A test that is marked to fail proves nothing when it passes."""
    change(project, "def test_plain", "@pytest.mark.xfail(strict=False)\ndef test_plain")
    run(project, "--record").assert_outcomes(passed=2, xpassed=1)
    assert outcomes(project) == {GREETS: (1, 0)}


def test_deselected_parameter_leaves_the_test_out(project: pytest.Pytester):
    """A test of which ``-k`` left a part out is not recorded as passed."""
    run(project, "--record", "-k", "ada or plain").assert_outcomes(passed=2, deselected=1)
    assert outcomes(project) == {PLAIN: (1, 0)}


def test_part_of_a_test_cannot_be_recorded(project: pytest.Pytester):
    """An id with parameters is refused with the remedy."""
    result = run(project, "--record", f"{GREETS}[ada]")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*is a part of a test; name it without parameters*"])
    assert not (project.path / runs.RUN).exists()


def test_runs_merge(project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Another environment is added; ``--record-fresh`` forgets all that was recorded."""
    run(project, "--record")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("platform.python_version", lambda: "3.99.0")
        run(project, "--record", PLAIN)
    assert outcomes(project) == {GREETS: (1, 0), PLAIN: (2, 0)}
    assert "3.99.0" in {each.python for each in runs.load(project.path).environments}
    run(project, "--record-fresh", PLAIN)
    assert outcomes(project) == {PLAIN: (1, 0)}


def test_newer_run_of_the_same_kind_replaces_the_older(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    """Another patch release of Python or of the database is no other environment."""
    for release in ("3.99.0", "3.99.1"):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr("platform.python_version", lambda release=release: release)
            run(project, "--record")
    run(project, "--record")
    assert outcomes(project) == {GREETS: (2, 0), PLAIN: (2, 0)}
    assert "3.99.0" not in {each.python for each in runs.load(project.path).environments}


def test_kept_record_keeps_its_day():
    """A test is proven since the day of its oldest environment that still counts."""
    here, there = (runs.Environment("SQLite 3", python, "6.1", "", "") for python in ("3.1", "3.2"))
    record = runs.Run()
    record.add(there, "2025-01-31", {"a": ("0", True)})
    record.add(here, "2025-02-28", {"a": ("0", True)})
    assert record.tests["a"].recorded == "2025-01-31"
    record.add(there, "2025-03-31", {"a": ("1", True)})
    assert record.tests["a"].recorded == "2025-03-31"


def test_what_could_not_be_run_is_kept_and_named(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    """What another database or file proved stays, and the end of the run says what that is."""
    (project.path / "test_far.py").write_text("def test_far():\n    pass\n")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("platform.python_version", lambda: "3.99.0")
        run(project, "--record")
    change(project, "def test_plain():\n    assert PLAIN", "def test_new():\n    assert PLAIN")
    change(project, 'f"Hello, {', '"Hello, " + f"{')
    with (project.path / "test_greeting.py").open("a") as tests:
        tests.write("\nif not PLAIN:\n    def test_plain():\n        assert PLAIN\n")
    result = run(project, "--record", "test_greeting.py")
    assert outcomes(project) == {
        GREETS: (1, 0),
        PLAIN: (1, 0),
        "test_greeting.py::test_new": (1, 0),
        "test_far.py::test_far": (1, 0),
    }
    result.stdout.fnmatch_lines(
        [
            "recorded: no database, Python 3.*: 2 tests",
            "kept: no database, Python 3.99.0*: 1 tests, 1 of them not run now",
            f"  {PLAIN}",
            f"changed, to be run anew: no database, Python 3.99.0*: {GREETS}",
        ]
    )


def test_record_of_a_test_that_is_gone_goes(project: pytest.Pytester):
    """Nobody runs it any more."""
    run(project, "--record")
    change(project, "def test_plain", "def test_simple")
    run(project, "--record", GREETS)
    assert outcomes(project) == {GREETS: (1, 0)}


def test_record_that_was_edited_is_made_anew(project: pytest.Pytester):
    """What does not hold is no reason not to record; the rest stays."""
    run(project, "--record")
    path = project.path / runs.RUN
    path.write_text(path.read_text().replace(runs.load(project.path).tests[PLAIN].seal, "0"))
    with pytest.raises(runs.RunError, match="was changed by hand"):
        runs.load(project.path)
    run(project, "--record", GREETS)
    assert outcomes(project) == {GREETS: (1, 0)}
    run(project, "--record", PLAIN)
    assert outcomes(project) == {GREETS: (1, 0), PLAIN: (1, 0)}


def test_damaged_record_is_refused_at_once(project: pytest.Pytester):
    """The tests do not run for nothing."""
    run(project, "--record")
    (project.path / runs.RUN).write_text("<<<<<<<")
    result = run(project, "--record")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{runs.RUN} is damaged*, or git checkout {runs.RUN}"])


def test_result_in_the_same_environment_is_replaced(project: pytest.Pytester):
    """A test that passes after it failed is recorded as passed, and the other way round."""
    change(project, "PLAIN = True", "PLAIN = False")
    run(project, "--record")
    assert outcomes(project)[PLAIN] == (0, 1)
    change(project, "PLAIN = False", "PLAIN = True")
    run(project, "--record")
    assert outcomes(project)[PLAIN] == (1, 0)
    change(project, "PLAIN = True", "PLAIN = False")
    run(project, "--record")
    assert outcomes(project)[PLAIN] == (0, 1)


def test_other_source_forgets_what_was_recorded(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    """What passed in another environment proves nothing for a test that changed since."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("platform.python_version", lambda: "3.99.0")
        run(project, "--record")
    change(project, "assert PLAIN", "assert PLAIN is True")
    run(project, "--record")
    assert outcomes(project) == {GREETS: (2, 0), PLAIN: (1, 0)}


def test_run_that_is_cut_short_is_not_recorded(project: pytest.Pytester):
    """A run that could not be collected leaves the record as it was."""
    run(project, "--record")
    before = (project.path / runs.RUN).read_text()
    (project.path / "test_broken.py").write_text("import missing_module\n")
    assert run(project, "--record-fresh").ret == pytest.ExitCode.INTERRUPTED
    assert (project.path / runs.RUN).read_text() == before


def test_without_record_nothing_is_written(project: pytest.Pytester):
    """A plain run of the tests leaves the files alone."""
    run(project, "--record")
    files = {path: path.read_bytes() for path in project.path.rglob("*.json")}
    run(project)
    assert {path: path.read_bytes() for path in project.path.rglob("*.json")} == files
    assert len(files) == 2
