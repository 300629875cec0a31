"""Each block of the site, copied with its button and pasted where its head says that it goes."""

import json
import os
import re
import shutil
import socket
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from urllib.request import urlopen

import pytest
from django.core.management import call_command
from playwright.sync_api import Browser

from docs._ext.record import markers, places, recordings
from tests.core.gate import GUARD
from tests.docs.conftest import ROOT
from tests.support.examples import alone_on_postgresql
from tests.support.starter import Starter

NAMES = recordings.examples(ROOT)
SERVER = "PostgreSQL"
Run = Callable[..., subprocess.CompletedProcess[str]]


def shown(name: str) -> str:
    """Return the example as a page shows it."""
    source = recordings.example_path(ROOT, name).read_text(encoding="utf-8")
    return markers.excerpt(source).text


PLACES = {name: places.place(name, shown(name)) for name in NAMES}
#: The pages of one task each, and the tutorial, have tests that run their blocks as the page says.
APART = {path.stem.replace("-", "_") for path in (ROOT / "docs/howto").glob("*.md")} | {"start"}


@cache
def server_answers() -> bool:
    """Say whether a PostgreSQL is there for the blocks that need one."""
    address = os.environ.get("PGHOST", "127.0.0.1"), int(os.environ.get("PGPORT", "5432"))
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError:
        return False
    return True


#: Those that run here: those of PostgreSQL where it answers. What names another server only
#: configures it.
HERE = [
    name
    for name in NAMES
    if (SERVER not in PLACES[name].needs or server_answers())
    and name.partition("/")[0] not in APART
    # Those take a server that tests/guide/test_messages.py and tests/servers have.
    and not {"PgBouncer in between", "a my.cnf that leads there"} & set(PLACES[name].needs)
]


#: For each button of the page: the file whose text it copies, and the head of the block. What an
#: example does away with has a button of its own, folded below the block.
BUTTONS = """() => [...document.querySelectorAll(".example")].flatMap((block) => {
    const caption = block.querySelector(".caption-text").innerText;
    if (caption.includes(" (")) return [];  // a part: the whole is on a page, too
    block.querySelectorAll("details").forEach((each) => (each.open = true));
    const named = [caption.split(",")[0].trim()];
    const folded = [...block.querySelectorAll("summary")];
    named.push(...folded.map((each) => each.innerText.split(/\\s/).pop()));
    const head = block.querySelector(".example-place").innerText;
    const buttons = block.querySelectorAll("button.copybtn");
    return named.map((name, i) => ((buttons[i].dataset.test = name), [name, head]));
})"""
#: What the clipboard holds as soon as it holds something; then it is emptied for the next.
TAKE = """async () => {
    for (;;) {
        const text = await navigator.clipboard.readText();
        if (text) return await navigator.clipboard.writeText(""), text;
    }
}"""


def copy_all(browser: Browser, address: str) -> dict[str, tuple[str, str]]:
    """Press the button of each block; return its head and what the clipboard then holds."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    page = context.new_page()
    found: dict[str, tuple[str, str]] = {}
    output = ROOT / "docs"
    for source in sorted(output.rglob("*.md")):
        name = source.relative_to(output).with_suffix("").as_posix()
        if name.startswith("_") or "{example}" not in source.read_text(encoding="utf-8"):
            continue
        page.goto(f"{address}/{name}.html")
        page.wait_for_selector("button.copybtn", state="attached")
        for path, head in page.evaluate(BUTTONS):
            page.locator(f'[data-test="{path}"]').click()
            example = path.removeprefix("examples/").removesuffix(".py")
            found[example] = (head, page.evaluate(TAKE))
    context.close()
    return found


@pytest.fixture(scope="module")
def clipboard(
    browser: Browser, address: str, once: Callable[..., Path]
) -> dict[str, tuple[str, str]]:
    """Return the head of each block, and what its button has left in the clipboard."""

    def copy(path: Path) -> None:
        path.write_text(json.dumps(copy_all(browser, address)), encoding="utf-8")

    return json.loads(once("clipboard.json", copy).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project, as ``startproject`` does."""
    path = tmp_path_factory.mktemp("project")
    call_command("startproject", "mysite", path)
    return path


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run Python with nothing of this run but the package, the server and the plugins it names."""
    kept = {"PGHOST": "127.0.0.1", "PGUSER": "postgres"}  # as tests/settings.py has it
    kept |= {name: value for name, value in os.environ.items() if name.startswith("PG")}
    kept |= {"PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    kept |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    starter = Starter(kept)
    yield partial(starter.run, timeout=GUARD * 2)
    starter.close()


def plugins(name: str) -> str:
    """Return the options that have pytest load what the head of a block names, and no other."""
    known = {"pytest-django": "django", "pytest-asyncio": "asyncio", "anyio": "anyio"}
    found = [known[each] for each in PLACES[name].needs if each in known]
    return " ".join(f"-p {each}" for each in [*found, "pytest_ormbridge"])


def test_every_block_has_been_copied(clipboard):
    """No example is missing, and what the button copies is the example to the last line."""
    assert sorted(clipboard) == NAMES
    assert {name: text.strip() for name, (_, text) in clipboard.items()} == {
        name: shown(name).strip() for name in NAMES
    }


def test_heads_tell_the_place(clipboard):
    """Above a block stands where it goes, what it needs and what it leaves."""
    expected = {name: str(PLACES[name]).replace("`", "") for name in NAMES}
    told = {name: head.partition(" Full file")[0] for name, (head, _) in clipboard.items()}
    befores = {name for name in NAMES if told[name] != expected[name]}
    # A block of two has the head of the one that it ends with.
    assert befores == {name for name in NAMES if name in SHOWN_AS_BEFORE}


SHOWN_AS_BEFORE = {
    line.split()[1]
    for source in (ROOT / "docs").rglob("*.md")
    for line in source.read_text(encoding="utf-8").splitlines()
    if line.startswith(":before:")
}


@pytest.mark.parametrize("name", [each for each in HERE if PLACES[each].by_itself])
def test_program_runs_by_itself(clipboard, run, tmp_path, name):
    """Pasted into an empty folder, it runs to its end and leaves what its head says."""
    place = PLACES[name]
    (tmp_path / place.file).write_text(clipboard[name][1], encoding="utf-8")
    variables = dict(each.split("=") for each in place.command.split() if "=" in each)
    with alone_on_postgresql() if name == "messages/postgresql" else nullcontext():
        finished = run(tmp_path, place.file, **variables)
    assert finished.returncode == 0, finished.stderr
    left = sorted(each.name for each in tmp_path.iterdir() if each.name != place.file)
    assert left == sorted(place.leaves)


#: What runs a block in a project: nothing but its own settings, and no variable that names them.
LOAD = """
import importlib, sys
import django
from django.conf import settings
if sys.argv[1] != "mysite.asgi":
    import os
    os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
    django.setup()
module = importlib.import_module(sys.argv[1])
assert callable(getattr(module, "application", print))
if sys.argv[1] != "mysite.settings":  # whose database is not there
    from django.core.management import call_command
    call_command("check", fail_level="WARNING")
"""


@pytest.mark.parametrize("name", [each for each in HERE if not PLACES[each].by_itself])
def test_block_goes_into_a_project(clipboard, project, run, tmp_path, name):
    """Pasted into its file of a new project, it is loaded, or its tests run."""
    place = PLACES[name]
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    path = tmp_path / place.file
    if place.file == "mysite/settings.py":  # it takes the place of what stands there
        path.write_text(path.read_text() + "\n" + clipboard[name][1], encoding="utf-8")
    else:
        path.write_text(clipboard[name][1], encoding="utf-8")
    if place.command:
        _, *options = place.command.split()
        finished = run(tmp_path, "-m", "pytest", *options, PYTEST_ADDOPTS=plugins(name))
        # Some show how a test fails: it has run all the same.
        assert finished.returncode in (0, 1), finished.stdout + finished.stderr
        assert " passed" in finished.stdout or " failed" in finished.stdout
    else:
        module = place.file.removesuffix(".py").replace("/", ".")
        finished = run(tmp_path, "-c", LOAD, module)
        assert finished.returncode == 0, finished.stderr


FULL = [name for name in NAMES if places.full_file(name, shown(name))]
#: Those that show how a test fails.
FAIL = {"testing/before", "testing/leak", "testing/outside"}
#: What has no full file: settings, functions that settings name, and what needs PostgreSQL.
PARTS = {
    "cancellation/network",
    "cancellation/network_mariadb",
    "cancellation/view",
    "connections/reset",
    "connections/reset_by_closing",
    "connections/reset_tenants",
    "connections/tenant",
    "connections/tenant_of_a_call",
    "database_access/clean_up",
    "deployment/settings",
    "green/settings",
    "green/view",
    "observing/log",
    "streaming/read_ahead",
    "transactions/advisory_lock",
    "transactions/retry",
}


def test_what_does_not_run_by_itself_has_a_full_file():
    """But for the parts of a project that do nothing alone."""
    others = {name for name in NAMES if not PLACES[name].by_itself}
    assert {name for name in others if name.partition("/")[0] not in APART} == {*FULL, *PARTS}


@pytest.mark.parametrize("name", FULL)
def test_full_file_runs_by_itself(address, run, tmp_path, name):
    """Saved from the link in its head into an empty folder, it runs, and names what it needs."""
    path = places.full_path(name, shown(name))
    with urlopen(f"{address}/{path}") as answer:
        text = answer.read().decode()
    assert shown(name).strip() in text
    metadata = re.match(r"# /// script\n((?:# .*\n)+?)# ///\n", text)[1]
    declared = tomllib.loads(re.sub("(?m)^# ", "", metadata))
    assert {"ormbridge", *PLACES[name].needs} == set(declared["dependencies"])
    file = path.rpartition("/")[2]
    (tmp_path / file).write_text(text, encoding="utf-8")
    finished = run(tmp_path, file, PYTEST_ADDOPTS=plugins(name))
    assert finished.returncode == (name in FAIL), finished.stdout + finished.stderr
    assert re.search(r" 200 |websocket\.send| passed| failed", finished.stdout)


NEED_A_SERVER = [name for name in NAMES if SERVER in PLACES[name].needs and PLACES[name].by_itself]


@pytest.mark.parametrize("name", NEED_A_SERVER)
def test_program_says_that_its_server_is_missing(run, tmp_path, name):
    """Where no PostgreSQL answers, it ends and says so; it does not hang."""
    # psycopg's pool tries for 30 s, where it is not told otherwise.
    source = shown(name).replace('"pool": {', '"pool": {"timeout": 1, ')
    (tmp_path / PLACES[name].file).write_text(source, encoding="utf-8")
    finished = run(tmp_path, PLACES[name].file, PGHOST="127.0.0.1", PGPORT="1")
    assert "onnection refused" in finished.stdout + finished.stderr


def test_program_says_which_package_is_missing(run, tmp_path):
    """Without a package that its head names, it ends at once, with the name of it."""
    name = "index/after"
    (tmp_path / "after.py").write_text(shown(name), encoding="utf-8")
    (tmp_path / "ormbridge.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'ormbridge'\")"
    )
    finished = run(tmp_path, "after.py")
    assert finished.returncode == 1
    assert "No module named 'ormbridge'" in finished.stderr
