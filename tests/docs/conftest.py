"""A small site with one example and one claim, all in order; tests spoil it and build it."""

import fcntl
import io
import json
import re
import shutil
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright
from sphinx.application import Sphinx
from sphinx.util.console import strip_colors
from sphinx.util.docutils import docutils_namespace, patch_docutils

from docs._ext.record import proofs, recordings, runs
from docs._ext.record.seals import seal

ROOT = Path(__file__).parents[2]

EXTENSIONS = ["examples", "claims", "proven", "closed_set"]
CLAIM = "tests/test_greeting.py::test_greets"
NOTE = f"\n[^greets]: {CLAIM}\n"

FILES = {
    "examples/index/greeting.py": """\
def greet(name):
    return f"Hello, {name}"  # <--


# [call]
print(greet("ada"))
# [/call]
""",
    "tests/test_greeting.py": '''\
import pytest


@pytest.mark.parametrize("name", ["ada"])
def test_greets(name):
    """``greet`` says hello.

    It knows the name.
    """
    assert name


def test_other():
    pass
''',
    "docs/index.md": f"""\
# Home

The page begins. `greet` says hello to a name.[^greets] This is not claimed.

```{{example}} index/greeting
:output:
```

```{{toctree}}
guide
proven
```
{NOTE}""",
    "docs/guide.md": "# Guide\n\nNothing here.\n",
    "docs/proven.md": "# Proven\n\n```{proven}\n```\n",
}

SQLITE = runs.Environment("SQLite 3.40.1", "3.11.2", "5.2", "4.3.2", "3.13.0")
POSTGRESQL = runs.Environment("PostgreSQL 15.6", "3.13.0", "6.1", "4.3.2", "3.13.0")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures of the site that the tests took, whichever process took them."""
    passed = terminalreporter.stats.get("passed", [])
    noted = [each for report in passed for each in report.user_properties]
    for figure in [value for name, value in noted if name == "figure"]:
        terminalreporter.write_line(figure)
    if pages := [value for name, value in noted if name == "page"]:
        terminalreporter.write_line(
            f"Pages without a finding of axe and without a request off the site: {len(pages)}"
        )


class Site:
    """A project with pages, examples, tests and recordings below *root*."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.output = root / "out"

    def path(self, name: str) -> Path:
        """Return the path of a file of the project."""
        return self.root / name

    def write(self, name: str, text: str) -> None:
        """Write a file of the project."""
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def write_sealed(self, name: str, results: dict[str, Any]) -> None:
        """Write *results* as the run that measured them does."""
        self.write(name, json.dumps({**results, "seal": seal(results)}))

    def add(self, name: str, text: str) -> None:
        """Add to the end of a file of the project."""
        self.write(name, self.path(name).read_text(encoding="utf-8") + text)

    def replace(self, name: str, old: str, new: str) -> None:
        """Replace the only *old* in a file of the project."""
        text = self.path(name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} has {text.count(old)} times {old!r}"
        self.write(name, text.replace(old, new))

    def record(self, test: str = CLAIM, *, passed: bool = True) -> None:
        """Record that *test* passed on SQLite, and passed or failed on PostgreSQL."""
        sha256 = proofs.find(self.root, test).sha256
        run = runs.load(self.root) if self.path(runs.RUN).exists() else runs.Run()
        run.add(SQLITE, "2025-01-31", {test: (sha256, True)})
        run.add(POSTGRESQL, "2025-01-31", {test: (sha256, passed)})
        runs.save(self.root, run)

    def build_as_project(self) -> None:
        """Build the site with the project's own ``conf.py``; no warning passes."""
        shutil.copytree(ROOT / "docs/_inventories", self.path("docs/_inventories"))
        finished = subprocess.run(
            [sys.executable, "-m", "sphinx", "-q", "-W", "-n", "-c", str(ROOT), "docs", "out"],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (finished.returncode, finished.stderr) == (0, "")

    def build(self) -> list[str]:
        """Build the site, in what an earlier build left, and return the warnings."""
        output = io.StringIO()
        with patch_docutils(), docutils_namespace(), warnings.catch_warnings():
            # MyST's way to the builder is deprecated in Sphinx and goes in Sphinx 11.
            warnings.filterwarnings("ignore", ".*MystReferenceResolver.app", DeprecationWarning)
            warnings.filterwarnings(
                "ignore", ".*MystReferenceResolver.app", PendingDeprecationWarning
            )
            app = Sphinx(
                srcdir=self.root / "docs",
                confdir=None,
                outdir=self.output,
                doctreedir=self.root / "doctrees",
                buildername="html",
                confoverrides={
                    "extensions": ["myst_parser", *(f"docs._ext.{each}" for each in EXTENSIONS)],
                    "html_theme": "basic",
                    "html_copy_source": False,
                    "exclude_patterns": ["_*"],
                    "highlight_language": "text",
                },
                status=None,
                warning=output,
            )
            app.build()
        text = strip_colors(output.getvalue()).replace(f"{self.root}/", "")
        return text.splitlines()

    def html(self, page: str) -> str:
        """Return the HTML of *page*."""
        return (self.output / f"{page}.html").read_text(encoding="utf-8")

    def code(self, page: str) -> list[str]:
        """Return the text of each block of code of *page*."""
        blocks = re.findall(r"<pre>(.*?)</pre>", self.html(page), flags=re.DOTALL)
        return [unescape(re.sub(r"<[^>]+>", "", block)) for block in blocks]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Make a site that builds without a warning."""
    site = Site(tmp_path)
    for name, text in FILES.items():
        site.write(name, text)
    recordings.save(site.root, "index/greeting", ["Hello, ada"])
    site.record()
    return site


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """Start the browser that the machine has."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(f"these tests need one of {', '.join(names)} on the path", pytrace=False)
    # Only the page that was just built is opened, so the sandbox, which root lacks, is not missed.
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=quiet)
        yield browser
        browser.close()


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def once(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Callable[[str, Callable[[Path], object]], Path]:
    """Return a function that has the first process of the run make what all of them use."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        """Return the path *name*, where *make* has put what it makes."""
        path, unfinished = shared / name, base / name
        with shared.joinpath(f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes second waits
            if not path.exists():
                make(unfinished)
                unfinished.replace(path)
        return path

    return made


@pytest.fixture(scope="session")
def whole_site(once: Callable[..., Path]) -> Path:
    """Build the site of the project, once for all tests; return its directory."""

    def build(output: Path) -> None:
        # Not -W: whether the records are up to date is not what is tested here.
        command = [sys.executable, "-m", "sphinx", "-q", "-c", ".", "-d", f"{output}.doctrees"]
        subprocess.run([*command, "docs", str(output)], cwd=ROOT, check=True, timeout=300)

    return once("site", build)


@pytest.fixture(scope="session")
def address(whole_site: Path) -> Iterator[str]:
    """Serve the site of the project: a browser has a clipboard for what has an address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(whole_site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
