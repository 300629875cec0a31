"""What the tests of the guide share."""

import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from django.contrib.auth.models import User

import ormbridge
from tests.core.gate import PROCESS_GUARD
from tests.settings import CHOICE
from tests.support.examples import EXAMPLES, example_source


@pytest.fixture(params=["ormbridge", "channels.db"])
def package(request: pytest.FixtureRequest) -> str:
    """Name the package that the example imports the bridge from."""
    return request.param


@pytest.fixture
def load_example() -> Callable[..., types.ModuleType]:
    """Return a function that runs an example's source as a new module."""

    def load(name: str, package: str = "ormbridge") -> types.ModuleType:
        # With what loads it, which Python 3.15 asks for where it shows a traceback.
        spec = spec_from_file_location(name.rpartition("/")[2], EXAMPLES / f"{name}.py")
        module = module_from_spec(spec)
        exec(compile(example_source(name, package), f"{name}.py", "exec"), module.__dict__)
        return module

    return load


def run_python(
    directory: Path, source: str, *options: str, stderr: int, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run *source* as a script in *directory*, with *options* of the interpreter."""
    (directory / "script.py").write_text(source, encoding="utf-8")
    return subprocess.run(
        [sys.executable, *options, "script.py"],
        cwd=directory,
        # Nothing of the test run's own environment reaches the script but the package itself.
        env={"PYTHONPATH": str(Path(ormbridge.__file__).parents[1]), **environment},
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=PROCESS_GUARD,
        check=False,  # who called says what failed
    )


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a script in an empty directory and returns what it prints."""

    def run(source: str, **environment: str) -> str:
        finished = run_python(
            tmp_path, source, "-W", "error", stderr=subprocess.PIPE, **environment
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""
        return finished.stdout

    return run


@pytest.fixture
def run_example(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs an example in an empty directory and returns what it prints.

    What it writes to standard error is a part of that. *changes* are pairs of what is to be
    replaced in the example, and by what.
    """

    def run(name: str, *options: str, changes: Iterable[tuple[str, str]] = ()) -> str:
        source = example_source(name)
        for before, after in changes:
            assert before in source
            source = source.replace(before, after)
        finished = run_python(tmp_path, source, *options, stderr=subprocess.STDOUT)
        assert finished.returncode == 0, finished.stdout
        return finished.stdout

    return run


@pytest.fixture
def ada(transactional_db: None) -> User:
    """Make a user named ada, committed, so that every thread sees her."""
    return User.objects.create(username="ada")


def newest_initdb() -> Path | None:
    """Return PostgreSQL's initdb, also where Debian keeps it, or None."""
    found = shutil.which("initdb")
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(found) if found else packaged[-1] if packaged else None


INITDB = newest_initdb() if CHOICE == "postgresql" else None


@contextmanager
def own_server(options: str = "", password: str = "") -> Iterator[str]:
    """Run a PostgreSQL of the test's own, started with *options*; yields its directory.

    That is the host to connect to, as user postgres. With *password* it asks everybody for one.
    """
    assert INITDB is not None
    # A short path, because sockets have none longer than 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ormbridge-") as name:
        secret = Path(name, "password")
        secret.write_text(password, encoding="utf-8")
        # Root is refused by PostgreSQL.
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        user = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
        for path in (name, secret) if root else ():
            shutil.chown(path, "postgres", "postgres")

        def run(program: str, *arguments: str) -> None:
            subprocess.run(
                [INITDB.with_name(program), "-D", f"{name}/data", *arguments],
                check=True,
                timeout=PROCESS_GUARD,
                stdout=subprocess.DEVNULL,
                cwd="/",
                **user,
            )

        asks = ("-A", "scram-sha-256", f"--pwfile={secret}") if password else ("-A", "trust")
        run("initdb", "-U", "postgres", *asks, "--no-sync")
        # The port is a part of the socket's name.
        options = f"{options} -c listen_addresses='' -k {name} -p 5432 -F"
        run("pg_ctl", "-w", "-l", f"{name}/log", "-o", options, "start")
        try:
            yield name
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
