"""The pytest plugin behind ``nox -s record``: what examples print, and which tests passed.

The fixture ``recorded(name, output)`` compares what the example *name* printed with its recording
in ``examples/recorded``. With ``--record`` it writes the recording instead, once the test has
passed.

The fixture ``recorded_timeline(name, timeline)`` does the same for what
``tests/support/timeline.py`` watched: it compares the structure, not the times.

With ``--record`` the plugin also adds the run to ``docs/_recorded/run.json``: each test, the digest
of its source, and the environment it passed or failed in. Runs on several databases merge into one
file: what is recorded of another database, or of tests that did not run, is kept as long as the
source of the test is the same, and the end of the run says what that is. ``--record-fresh`` starts
an empty file. A test counts as passed if every one of its parameters
ran and passed. If some were skipped or left out (``-k``), nothing is said about the test in this
environment.

File formats and comparison are those of ``docs/_ext/record``, which the build of the site reads
with.
"""

import datetime as dt
import difflib
import importlib.metadata
import json
import platform
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from docs._ext.record import proofs, recordings, runs, spans
from tests.support.timeline import Timeline

#: What Python says since 3.14, and what it said before, which is what is recorded.
SINCE_3_14 = [
    (r"'(\w+)' object can't be awaited", r"object \1 can't be used in 'await' expression"),
    (
        r"'[\w.]+\.(\w+)' (object does not support the asynchronous context manager protocol)"
        r"( \(missed __aexit__ method\) but it supports the context manager protocol\. "
        r"Did you mean to use 'with'\?)?",
        r"'\1' \2",
    ),
]
#: How many tests are named; of more it is said how many there are.
FEW = 20
RECORDER = pytest.StashKey["Recorder"]()
PRINTED = pytest.StashKey[dict[str, tuple[str, ...]]]()
WATCHED = pytest.StashKey[dict[str, tuple[tuple[spans.Span, ...], bool]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("recording", "record what the documentation shows")
    group.addoption(
        "--record", action="store_true", help="write examples/recorded and docs/_recorded/run.json"
    )
    group.addoption(
        "--record-fresh", action="store_true", help="like --record, but forget earlier runs"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start recording if asked to."""
    if config.option.record or config.option.record_fresh:
        try:
            recorder = Recorder(config.rootpath, fresh=config.option.record_fresh)
        except runs.RunError as error:
            raise pytest.UsageError(f"--record: {error}, or git checkout {runs.RUN}") from error
        config.stash[RECORDER] = recorder
        config.pluginmanager.register(recorder, "recorder")


@pytest.fixture(scope="session", autouse=True)
def database_of_the_run(request: pytest.FixtureRequest) -> None:
    """Tell the recorder, if there is one, the database and its version."""
    recorder = request.config.stash.get(RECORDER, None)
    if recorder is None:
        return
    try:
        request.getfixturevalue("django_db_setup")
    except pytest.FixtureLookupError:
        return  # a project without a database
    with request.getfixturevalue("django_db_blocker").unblock():
        recorder.database = database_name()


@pytest.fixture
def recorded(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare what an example printed with its recording: ``recorded("name", output)``."""
    root = request.config.rootpath
    recorder = request.config.stash.get(RECORDER, None)

    def compare(name: str, output: str) -> None:
        __tracebackhide__ = True
        if not recordings.example_path(root, name).is_file():
            pytest.fail(f"no example {name!r}: examples/{name}.py does not exist", pytrace=False)
        lines = recordings.lines_of(output, root)
        if recorder is None:
            expected = read(root, name)
        else:
            request.node.stash.setdefault(PRINTED, {})[name] = lines
            expected = recorder.printed.get(name, lines)
        if message := difference(name, expected, lines):
            pytest.fail(message, pytrace=False)

    return compare


@pytest.fixture
def recorded_timeline(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compare what a test watched with its recording: ``recorded_timeline("name", timeline)``.

    ``overlaps=False`` leaves out which calls ran at once, where the load of the machine decides it.
    """
    root = request.config.rootpath
    recording = RECORDER in request.config.stash

    def compare(name: str, timeline: Timeline, *, overlaps: bool = True) -> None:
        __tracebackhide__ = True
        source = recordings.example_path(root, spans.example_of(name))
        if not source.is_file():
            shown = source.relative_to(root).as_posix()
            pytest.fail(f"no example for timeline {name!r}: {shown} does not exist", pytrace=False)
        if recording:
            request.node.stash.setdefault(WATCHED, {})[name] = timeline.spans, overlaps
            return
        try:
            expected = spans.load(root, name).spans
        except recordings.RecordingError as error:
            pytest.fail(str(error), pytrace=False)
        old, new = (
            json.dumps(spans.structure(each, overlaps=overlaps), indent=1).splitlines()
            for each in (expected, timeline.spans)
        )
        if old != new:
            diff = "\n".join(difflib.unified_diff(old, new, "recorded", "seen now", lineterm=""))
            pytest.fail(
                f"timeline {name!r} is another than recorded:\n{diff}\n"
                f"if this is right, {recordings.REMEDY}",
                pytrace=False,
            )

    return compare


def read(root: Path, name: str) -> tuple[str, ...]:
    """Return the recorded output of *name*; fail the test if it is missing or stale."""
    __tracebackhide__ = True
    try:
        recording = recordings.load(root, name)
    except recordings.RecordingError as error:
        pytest.fail(str(error), pytrace=False)
    source = recordings.example_path(root, name).read_text(encoding="utf-8")
    if recording.sha256 != recordings.digest(source):
        pytest.fail(recordings.stale(root, name), pytrace=False)
    return recording.output


def difference(name: str, expected: tuple[str, ...], lines: tuple[str, ...]) -> str:
    """Return what to tell about *lines* that are not as *expected*, or an empty string."""
    old, new = (recordings.masked(map(in_words_of_3_13, each)) for each in (expected, lines))
    if old == new:
        return ""
    diff = "\n".join(difflib.unified_diff(old, new, "recorded", "printed now", lineterm=""))
    return (
        f"example {name!r} prints something else than recorded:\n{diff}\n"
        f"if this is right, {recordings.REMEDY}"
    )


def in_words_of_3_13(line: str) -> str:
    """Return *line* with what Python says since 3.14 as it said before."""
    for words, before in SINCE_3_14:
        line = re.sub(words, before, line)
    return line


class Recorder:
    """Gathers the outcome of every test and writes it when the run is over."""

    def __init__(self, root: Path, *, fresh: bool) -> None:
        self.root = root
        self.fresh = fresh
        self.earlier()  # if it cannot be read, now is the time to say so
        self.said: list[str] = []
        self.database = ""
        self.today = dt.datetime.now(dt.UTC).date().isoformat()
        #: What examples printed in tests that passed; a second test must see the same.
        self.printed: dict[str, tuple[str, ...]] = {}
        #: Test id to the ids, with parameters, of all that must pass.
        self.expected: dict[str, set[str]] = defaultdict(set)
        self.passed: set[str] = set()
        self.failed: set[str] = set()

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Expect also what was left out: without it the test is not complete."""
        for item in items:
            self.expected[base(item.nodeid)].add(item.nodeid)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Expect every collected test."""
        for item in session.items:
            self.expected[base(item.nodeid)].add(item.nodeid)
        for argument in session.config.args:
            if "[" in argument:
                raise pytest.UsageError(
                    f"--record: {argument!r} is a part of a test; name it without parameters"
                )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Note the outcome; write the recordings of a test that passed."""
        report = yield
        if report.failed:
            self.failed.add(item.nodeid)
        elif report.when == "call" and report.passed and not hasattr(report, "wasxfail"):
            self.passed.add(item.nodeid)
            for name, lines in item.stash.get(PRINTED, {}).items():
                if name not in self.printed:
                    recordings.save(self.root, name, lines)
                    self.printed[name] = lines
            for name, (seen, overlaps) in item.stash.get(WATCHED, {}).items():
                environment = asdict(self.environment())
                spans.save(self.root, name, seen, environment, self.today, overlaps=overlaps)
        return report

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the run, unless it was cut short."""
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            return
        results: dict[str, tuple[str, bool]] = {}
        for test, parts in self.expected.items():
            failed = bool(parts & self.failed)
            if not failed and not parts <= self.passed:
                continue
            try:
                results[test] = (proofs.find(self.root, test).sha256, not failed)
            except proofs.UnknownTestError:
                continue  # made by a plugin: no claim can name it
        run = self.earlier()
        before = dict(run.tests)
        run.add(self.environment(), self.today, results)
        for test in [each for each in run.tests if not self.exists(each)]:
            del run.tests[test]
        runs.save(self.root, run)
        self.said = list(self.report(before, run, results.keys()))

    def earlier(self) -> runs.Run:
        """Return what is recorded already."""
        if self.fresh or not (self.root / runs.RUN).exists():
            return runs.Run()
        return runs.load(self.root, mend=True)

    def exists(self, test: str) -> bool:
        """Say whether *test* is still in the tree."""
        try:
            proofs.find(self.root, test)
        except proofs.UnknownTestError:
            return False
        return True

    def report(
        self, before: dict[str, runs.Outcome], run: runs.Run, ran: Collection[str]
    ) -> Iterator[str]:
        """Yield what was recorded, what of the same files is kept, and what could not be."""
        here = self.environment()
        yield f"recorded: {named(here)}: {len(ran)} tests"
        files = {test.partition("::")[0] for test in ran}
        after = run.tests
        for other in run.environments:
            tests = [
                test
                for test, outcome in after.items()
                if test.partition("::")[0] in files and other in outcome.passed | outcome.failed
            ]
            absent = [test for test in tests if test not in ran]
            if other != here and tests:
                yield f"kept: {named(other)}: {len(tests)} tests, {len(absent)} of them not run now"
                if len(absent) <= FEW:
                    yield from (f"  {test}" for test in absent)
        for test in ran:
            if test in before and before[test].sha256 != after[test].sha256:
                gone = before[test].passed | before[test].failed
                lost = sorted(named(each) for each in gone if each.kind != here.kind)
                yield from (f"changed, to be run anew: {where}: {test}" for where in lost)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say it."""
        for line in self.said:
            terminalreporter.write_line(line)

    def environment(self) -> runs.Environment:
        """Return the versions that this run uses."""
        return runs.Environment(
            database=self.database,
            python=platform.python_version(),
            django=version("django"),
            channels=version("channels"),
            asgiref=version("asgiref"),
        )


def named(environment: runs.Environment) -> str:
    """Return *environment* in words."""
    found = asdict(environment)
    versions = [f"{name.title()} {found[name]}" for name in ("python", "django") if found[name]]
    return ", ".join([environment.database or "no database", *versions])


def base(nodeid: str) -> str:
    """Return *nodeid* without parameters."""
    return nodeid.partition("[")[0]


def version(distribution: str) -> str:
    """Return the installed version of *distribution*, or nothing."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def database_name() -> str:
    """Return the default database and its version, as ``PostgreSQL 15.6``."""
    from django.db import DEFAULT_DB_ALIAS, connections

    connection = connections[DEFAULT_DB_ALIAS]
    if connection.vendor != "sqlite":
        # Of the server: a run whose tests use no database has none of its own there.
        connection = type(connection)({**connection.settings_dict, "NAME": None})
    name = "MariaDB" if getattr(connection, "mysql_is_mariadb", False) else connection.display_name
    numbers = connection.get_database_version()
    connection.close()
    return f"{name} {'.'.join(map(str, numbers))}"
