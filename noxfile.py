"""The commands of the project: ``nox -l`` lists them, ``nox -s <name>`` runs one.

Versions and dependencies are read from ``pyproject.toml``; nothing is written down twice.
What follows ``--`` goes to the tool: ``nox -s tests -- -k inline``.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nox

nox.needs_version = ">=2026.8.10"  # the first whose sessions say that they may run in parallel
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "typing", "tests", "docs"]
# A Python that is not installed is left out with a note, never fetched: see `pythons_found`.
nox.options.download_python = "never"
# Dozens of processes are started: what one has compiled is kept for the others.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
BUILD = ROOT / "build"
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"

# The releases of Django under test, oldest first, and the first and the last Python that each
# supports. The newest has no last one yet.
DJANGO_NEEDS = {
    "5.2": ((3, 10), (3, 14)),
    "6.0": ((3, 12), (3, 14)),
    "6.1": ((3, 12), (4,)),
}
OLDEST_CHANNELS, NEWEST_CHANNELS = "channels~=4.2.0", "channels>=4.2"
# About turns more than about the database: on SQLite only. A run of `tests` tries a tenth of this.
STATEFUL = ["tests/test_stateful.py"]
EXAMPLES = 1500
# What starts projects of its own, which takes as long as half of the rest: not in `tests`.
PROJECTS = ["tests/guide/test_testing.py", "tests/testing/test_pytest_ormbridge.py"]
# That and the stateful test: once on each pair of ENDS.
SLOW = [*PROJECTS, *STATEFUL]
# Where Channels has a part: what runs with the oldest, too.
OF_CHANNELS = [
    str(path.relative_to(ROOT))
    for folder in ("asgi", "blocks", "core", "guide", "leases", "testing")
    for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))
    if "channels" in path.read_text(encoding="utf-8")
]
# What no database has a part in: on SQLite only.
NO_DATABASE = [
    "tests/test_package.py",  # it runs the tests of the core on SQLite
    "tests/test_readme.py",
    "tests/test_recording.py",
    "tests/test_release.py",
    "tests/test_timeline.py",
]
# What a pair between the ends leaves out: it tests what the releases could change.
BETWEEN = [*SLOW, *NO_DATABASE, "tests/guide"]
# What the oldest pair leaves out on PostgreSQL and MariaDB: it runs there with the newest, and with
# the oldest on SQLite.
ELSEWHERE = [*SLOW, *NO_DATABASE, "tests/guide", "tests/checks"]
# On several processes, each with a database of its own, where a session has the machine for itself.
# `-- -n 0` runs all in one, where --pdb and -s work.
SPREAD = ["-n", "auto", "--maxprocesses", "4", "--dist", "worksteal"]
# What holds on threads and in greenlets.
CONTRACT = ["core", "leases", "asgi", "blocks", "streaming", "postgres", "green"]
# The extra that holds the driver, and where the server is when the environment does not say.
SERVERS = {
    "postgresql": ("postgres", "PGHOST", "PGPORT", 5432),
    "mariadb": ("mysql", "MYSQL_HOST", "MYSQL_PORT", 3306),
}


def minor(version: str) -> tuple[int, ...]:
    """Return "3.12" as (3, 12), which sorts."""
    return tuple(map(int, version.split(".")))


def pythons_found() -> tuple[list[str], list[str]]:
    """Return the Pythons of this machine to test on, and those that it lacks, as "3.12".

    Each is started once: a name on the path may be a stub for a version that is not installed.
    The Python that runs nox is always in, so that a run of the tests is never empty.
    """
    if shutil.which(f"python{RUNNING}") is None:
        # nox finds a session's Python by that name; this one goes by another.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    found, missing = [RUNNING], []
    for version in nox.project.python_versions(PYPROJECT):
        if version == RUNNING:
            continue
        command = [f"python{version}", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            answer = ""
        (found if answer.strip() == version else missing).append(version)
    return sorted(found, key=minor), missing


PYTHONS, MISSING = pythons_found()
MATRIX = [
    (python, django)
    for python in PYTHONS
    for django, (first, last) in DJANGO_NEEDS.items()
    if first <= minor(python) <= last
]
# The Python that runs nox, with the newest Django that runs on it: what `tests` runs on.
HERE = (RUNNING, [django for python, django in MATRIX if python == RUNNING][-1])
# The oldest and the newest pair, or the one pair there is: for what is too slow for all.
ENDS = sorted({MATRIX[0], MATRIX[-1]}, key=MATRIX.index)
# What takes longest comes first: side by side, none is left to run alone then.
NEWEST_FIRST = ENDS[::-1]
LONGEST_FIRST = [*NEWEST_FIRST, *(pair for pair in MATRIX if pair not in ENDS)]


def install(session: nox.Session, *groups: str, extras: str = "channels", django: str = "") -> None:
    """Install the package with *extras*, the dependency *groups*, and the release *django*."""
    release = [f"Django~={django}.0"] if django else []
    needed = nox.project.dependency_groups(PYPROJECT, *groups)
    # What is loaded is compiled then; to compile all of it is half of what pip does.
    session.install("--no-compile", "--editable", f".[{extras}]", *needed, *release)


def run_tests(
    session: nox.Session, *arguments: str, database: str = "sqlite", **environment: str
) -> None:
    """Run pytest with *arguments* on *database*."""
    environment["ORMBRIDGE_TEST_DATABASE"] = database
    session.run("pytest", *arguments, *session.posargs, env=environment)


def without(paths: list[str]) -> list[str]:
    """Return the options that have pytest leave *paths* out."""
    return [f"--ignore={path}" for path in paths]


def test_on(session: nox.Session, database: str, django: str) -> None:
    """Test on a *database* that is a server; the oldest pair leaves out what runs elsewhere."""
    install(session, "tests", "drivers", extras=f"channels,{SERVERS[database][0]}", django=django)
    newest = (session.python, django) == ENDS[-1]
    left_out = [*STATEFUL, *NO_DATABASE] if newest else ELSEWHERE
    run_tests(session, *without(left_out), database=database)


def server_answers(database: str) -> bool:
    """Say whether something listens where *database* should be."""
    _, host, port, usual = SERVERS[database]
    address = (os.environ.get(host, "127.0.0.1"), int(os.environ.get(port, usual)))
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return False
    return True


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site and say where to open it."""
    install(session, "site")
    began = time.perf_counter()
    build_site(session, "html")
    took = time.perf_counter() - began
    page = (BUILD / "html" / "index.html").as_uri()
    print(f"\nThe site is built, in {took:.0f} s. Open it:\n\n    {page}\n", flush=True)


def build_site(session: nox.Session, builder: str) -> None:
    """Run a builder of Sphinx; a warning is an error, and all of them are shown."""
    # -E: read all pages anew. Sphinx warns of a page as it reads it, and so once in two runs.
    strict = ("-W", "-n", "-E", "-j", "auto", "--keep-going")
    places = ("-c", ".", "-d", "build/doctrees", "docs", f"build/{builder}")
    session.run("sphinx-build", "-b", builder, *strict, *session.posargs, *places)


@nox.session(name="docs-live")
def docs_live(session: nox.Session) -> None:
    """Serve the site and build it again whenever a file changes."""
    install(session, "docs")
    watch = ("conf.py", "examples", "src", "tests", "CHANGELOG.md")
    watched = [part for path in watch for part in ("--watch", path)]
    watched += ["--ignore", "*/__pycache__/*"]
    places = ("-c", ".", "-d", "build/doctrees-live", "docs", "build/live")
    session.run("sphinx-autobuild", "-W", "-n", "--keep-going", *watched, *session.posargs, *places)


@nox.session
def linkcheck(session: nox.Session) -> None:
    """Follow every link of the site. Needs the network."""
    install(session, "site")
    build_site(session, "linkcheck")


@nox.session
def inventories(session: nox.Session) -> None:
    """Fetch anew the inventories that let the site link to other projects. Needs the network."""
    install(session, "site")
    session.run("python", "docs/_inventories/refresh.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Test on SQLite, with this Python and the newest Django: two minutes."""
    install(session, "tests", django=HERE[1])
    run_tests(session, *SPREAD, *([] if session.posargs else without(PROJECTS)))
    if not session.posargs:
        session.log(f"tests-matrix, or `nox -s tests -- PATH`, runs {' and '.join(PROJECTS)}, too")


@nox.session(name="tests-matrix", allow_parallel=True)
@nox.parametrize("python,django", LONGEST_FIRST)
def tests_matrix(session: nox.Session, django: str) -> None:
    """Test on SQLite what `tests` does not: each Python found here, with each Django.

    The oldest and the newest pair run all, the oldest with an old Channels, too, and those between
    what a release could change. The pair of `tests` runs what that leaves out.
    """
    for version in MISSING:
        session.warn(f"Python {version} is not on this machine: its part of the matrix is left out")
    install(session, "tests", django=django)
    pair = (session.python, django)
    if pair == HERE:
        which = [] if session.posargs else SLOW
    else:
        which = [] if pair in ENDS else without(BETWEEN)
    if pair == ENDS[0]:  # the run before may have left the oldest
        session.install("--upgrade", NEWEST_CHANNELS)
    run_tests(session, *which, ORMBRIDGE_TEST_EXAMPLES=str(EXAMPLES))
    if pair == ENDS[0]:
        session.install(OLDEST_CHANNELS)
        # --ignore has no say in files that are named.
        run_tests(session, *(path for path in OF_CHANNELS if path not in SLOW))


@nox.session(name="tests-postgresql", allow_parallel=True)
@nox.parametrize("python,django", NEWEST_FIRST)
def tests_postgresql(session: nox.Session, django: str) -> None:
    """Test on PostgreSQL; fails where there is none."""
    test_on(session, "postgresql", django)


@nox.session(name="tests-green", python=PYTHONS[-1], allow_parallel=True)
def tests_green(session: nox.Session) -> None:
    """Test the contract again where it runs on the event loop's thread, on PostgreSQL."""
    install(session, "tests", "drivers", extras="channels,postgres,green")
    contract = [f"tests/{each}" for each in CONTRACT]
    run_tests(session, *contract, *STATEFUL, database="postgresql", ORMBRIDGE_TEST_GREEN="1")


@nox.session(name="tests-mariadb", allow_parallel=True)
@nox.parametrize("python,django", NEWEST_FIRST)
def tests_mariadb(session: nox.Session, django: str) -> None:
    """Test on MariaDB; fails where there is none."""
    test_on(session, "mariadb", django)


@nox.session(name="tests-servers", allow_parallel=True)
def tests_servers(session: nox.Session) -> None:
    """Test the middleware in real servers, on PostgreSQL, and stop them by signal."""
    install(session, "tests", "servers", "deployment", extras="channels,postgres")
    run_tests(session, "tests/servers", database="postgresql")


@nox.session(name="tests-instrumentation", allow_parallel=True)
def tests_instrumentation(session: nox.Session) -> None:
    """Trace requests with Sentry, OpenTelemetry, debug toolbar and silk, on PostgreSQL."""
    install(session, "tests", "instrumentation", extras="channels,postgres")
    run_tests(session, "tests/instrumentation", database="postgresql")


@nox.session(name="tests-howto", python=PYTHONS[-1], allow_parallel=True)
def tests_howto(session: nox.Session) -> None:
    """Test the pages of howto/ with the packages that they name, newest Python, PostgreSQL."""
    install(session, "tests", "howto", extras="channels,postgres")
    run_tests(session, "tests/howto", database="postgresql")


@nox.session
def demo(session: nox.Session) -> None:
    """Open a page that puts 50 clients on a server, with the bridge and without; Ctrl-C ends it."""
    install(session, "demo")
    # Ctrl-C reaches the demo too: leave it the time to close its sockets and remove its database.
    session.run("python", "-m", "examples.demo", *session.posargs, interrupt_timeout=10)


@nox.session
def deployment(session: nox.Session) -> None:
    """Run nginx, several processes, PgBouncer, PostgreSQL and Redis here; Ctrl-C ends them."""
    install(session, "deployment", extras="channels,postgres")
    # They end one after the other, and may wait for what runs.
    command = ["python", "-m", "examples.deployment.stack"]
    session.run(*command, *session.posargs, interrupt_timeout=120)


@nox.session(name="tests-demo", allow_parallel=True)
def tests_demo(session: nox.Session) -> None:
    """Test the demo in Chromium; fails where there is none."""
    install(session, "tests", "demo", "browser")
    run_tests(session, "tests/demo")


@nox.session(name="tests-docs", python=PYTHONS[-1], allow_parallel=True)
def tests_docs(session: nox.Session) -> None:
    """Test the machinery of the site: directives, roles, recordings."""
    # With each extra: what a block names in its head has to be there.
    install(session, "tests", "site", "browser", extras="channels,postgres,mysql")
    # A file stays together: what it builds, or the database of a server, is for all of its tests.
    run_tests(session, *SPREAD, "--dist", "loadfile", "tests/docs")


# The tests that have no business with the database of the run: the groups that they need, and where
# they run.
ASIDE = {
    "tests/docs": (("site", "browser"), "sqlite"),
    "tests/demo": (("demo", "browser"), "sqlite"),
    "tests/typing": (("typing",), "sqlite"),
    "tests/servers": (("servers", "deployment"), "postgresql"),
    "tests/instrumentation": (("instrumentation",), "postgresql"),
    "tests/howto": (("howto",), "postgresql"),
}
# One file is recorded as `tests` runs; these with the newest Python, as their sessions run them.
NEWEST = ("tests/docs", "tests/howto")


def pairs_for(paths: list[str]) -> list[tuple[str, str]]:
    """Return the pairs of Python and Django that *paths* are recorded with; all tests, with two."""
    if not paths:
        return ENDS
    return [MATRIX[-1] if any(each in path for path in paths for each in NEWEST) else HERE]


@nox.session
@nox.parametrize("python,django", sorted({*ENDS, HERE}, key=MATRIX.index))
def record(session: nox.Session, django: str) -> None:
    """Record what examples print and which tests pass: of all tests, or of the file after `--`."""
    pair, paths = (session.python, django), session.posargs
    if pair not in pairs_for(paths):
        session.skip("one pair of Python and Django is enough for a file")
    databases = ["sqlite", *(each for each in SERVERS if server_answers(each))]
    extras = ["channels", *(SERVERS[each][0] for each in databases[1:])]
    folders = [each for each in ASIDE if any(each in path for path in paths) or not paths]
    for folder in folders if paths else []:
        if ASIDE[folder][1] not in databases:
            session.error(f"{folder} needs {ASIDE[folder][1]}, which does not answer")
    install(
        session,
        *("tests", "drivers", *(group for folder in folders for group in ASIDE[folder][0])),
        extras=",".join(extras),
        django=django,
    )
    if paths:
        for database in [ASIDE[each][1] for each in folders] or databases:
            run_tests(session, "--record", database=database)
        return
    # What was recorded before is forgotten only where all of it can be run.
    supported = nox.project.python_versions(PYPROJECT)
    whole = set(SERVERS) < set(databases) and not {supported[0], supported[-1]} & set(MISSING)
    how = "--record-fresh" if whole and pair == ENDS[0] else "--record"
    last = pair == ENDS[-1]
    for database in databases:
        run_tests(session, how, *([] if last else without(SLOW)), database=database)
        how = "--record"
    for folder in folders if last else []:  # slow, and about other things than the pair: once
        if ASIDE[folder][1] in databases:
            run_tests(session, how, folder, database=ASIDE[folder][1])
    print(f"\nRecorded on {', '.join(databases)}.", flush=True)
    for database in SERVERS.keys() - set(databases):
        session.warn(f"{database} does not answer: what is recorded of it is kept")


@nox.session(name="new-example", venv_backend="none")
def new_example(session: nox.Session) -> None:
    """Begin an example: file, test, section of a page, record; asks for its page and name."""
    name = session.posargs or [input("Page and name, such as transactions/transfer: ").strip()]
    script = [sys.executable, "docs/_scaffold/new_example.py", *name]
    test = str(session.run(*script, external=True, silent=True)).strip()
    path, page = test.partition("::")[0], name[0].partition("/")[0]
    print(f"""
Begun. Now make of it what you want to show:

    examples/{name[0]}.py
    {path}, at the end
    docs, the page {page}, at the end

Then run:

    nox -s record -- {test}
    nox -s docs
""")
    ((python, django),) = pairs_for([test])
    session.notify(f"record(python='{python}', django='{django}')", [test])


@nox.session(allow_parallel=True)
def lint(session: nox.Session) -> None:
    """Check the style of the code and its format (ruff)."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", *session.posargs)


@nox.session(allow_parallel=True)
def typing(session: nox.Session) -> None:
    """Check the types (mypy strict and pyright), and those that users see."""
    install(session, "tests", "typing", extras="channels,postgres")
    session.run("mypy")
    session.run("pyright")
    run_tests(session, "tests/typing")


@nox.session(python=PYTHONS[-1])
def bench(session: nox.Session) -> None:
    """Compare the speed side by side with others on PostgreSQL; prints the table."""
    install(session, "bench", extras="channels,postgres,green")
    session.run("python", "-m", "tests.bench", *session.posargs)


@nox.session(python=PYTHONS[-1], allow_parallel=True)
def instructions(session: nox.Session) -> None:
    """Count what a call takes (valgrind); fails where that is 3 % more than was recorded."""
    install(session, "bench")
    session.run("python", "-m", "tests.bench.instructions", *session.posargs)


@nox.session(name="bench-bad-days", python=PYTHONS[-1])
def bench_bad_days(session: nox.Session) -> None:
    """Measure overload and a database that goes away; writes docs/_recorded/bad_days.json."""
    install(session, "bench", extras="channels,postgres,green")
    session.run("python", "-m", "tests.bench.bad_days", *session.posargs)


@nox.session(name="bench-deployment", python=PYTHONS[-1])
def bench_deployment(session: nox.Session) -> None:
    """Measure the stack with one, two and four processes; writes docs/_recorded/stack.json."""
    install(session, "bench", "deployment", extras="channels,postgres")
    session.run("python", "-m", "tests.bench.stack", *session.posargs)


@nox.session(allow_parallel=True)
def package(session: nox.Session) -> None:
    """Build the package, install it without extras and import it."""
    session.install("build")
    shutil.rmtree(BUILD / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", "build/dist", ".")
    (wheel,) = (BUILD / "dist").glob("*.whl")
    session.install("--force-reinstall", "--no-deps", str(wheel))
    session.install(str(wheel))
    # -P: what lies beside the script stays out of the way.
    session.run("python", "-P", "-W", "error", "tests/check_package.py")
