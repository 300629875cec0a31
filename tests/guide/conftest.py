"""What the tests of the guide share."""

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from django.contrib.auth.models import User

import ormbridge
from tests.gate import GUARD
from tests.guide.examples import example_source


@pytest.fixture(params=["ormbridge", "channels.db"])
def package(request: pytest.FixtureRequest) -> str:
    """Name the package that the example imports the bridge from."""
    return request.param


@pytest.fixture
def load_example() -> Callable[..., types.ModuleType]:
    """Return a function that runs an example's source as a new module."""

    def load(name: str, package: str = "ormbridge") -> types.ModuleType:
        module = types.ModuleType(name)
        exec(compile(example_source(name, package), f"{name}.py", "exec"), module.__dict__)
        return module

    return load


@pytest.fixture
def run_script(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a script in an empty directory and returns what it prints."""

    def run(source: str, **environment: str) -> str:
        (tmp_path / "script.py").write_text(source, encoding="utf-8")
        finished = subprocess.run(
            [sys.executable, "-W", "error", "script.py"],
            cwd=tmp_path,
            # Nothing of the test run's own environment reaches the script but the package itself.
            env={"PYTHONPATH": str(Path(ormbridge.__file__).parents[1]), **environment},
            capture_output=True,
            text=True,
            timeout=GUARD * 2,
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr == ""
        return finished.stdout

    return run


@pytest.fixture
def ada(transactional_db: None) -> User:
    """Make a user named ada, committed, so that every thread sees her."""
    return User.objects.create(username="ada")
