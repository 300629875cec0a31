"""A project, as ``startproject`` makes it, and its tests in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from django.core.management import call_command

from tests import settings as test_settings
from tests.core.gate import PROCESS_GUARD

ROOT = Path(__file__).parents[2]

PYTEST_INI = """\
[pytest]
DJANGO_SETTINGS_MODULE = mysite.settings
asyncio_mode = {mode}
asyncio_default_fixture_loop_scope = function
filterwarnings = error
"""

#: What stands in settings.DATABASES of a project for each database of a run of the tests.
DATABASES: dict[str, dict[str, Any]] = {
    "sqlite, in memory": {},  # what startproject writes, and Django's default for its tests
    "sqlite, on disk": {"TEST": {"NAME": "test.sqlite3"}},
    "postgresql": {},
    "mariadb": {},
}
#: Those of this run.
CHOICES = [each for each in DATABASES if each.startswith(test_settings.CHOICE)]


class Project:
    """A project in *path*, on one of DATABASES."""

    def __init__(self, path: Path, database: str = CHOICES[-1], mode: str = "auto") -> None:
        path.mkdir(exist_ok=True)
        call_command("startproject", "mysite", path)
        (path / "pytest.ini").write_text(PYTEST_INI.format(mode=mode))
        self.path = path
        name = database.partition(",")[0]
        self.configure(f"DATABASES['default'] |= {DATABASES[database]!r}")
        if name != "sqlite":
            default = {**test_settings.CHOICES[name](), "CONN_MAX_AGE": 60}
            # A name of its own: the run has its own test database on the same server.
            default["NAME"] = f"{test_settings.SERVER_NAME}_{path.name}"[-50:].strip("_")
            del default["TEST"]
            self.configure(f"DATABASES['default'] = {default!r}")

    def configure(self, line: str) -> None:
        """Add *line* to the settings."""
        with (self.path / "mysite" / "settings.py").open("a") as settings:
            settings.write(f"\n{line}\n")

    def write(self, **sources: str) -> None:
        """Write the module *name* with the given source, for each."""
        for name, source in sources.items():
            (self.path / f"{name}.py").write_text(source, encoding="utf-8")

    def pytest(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run pytest in the project; a warning is an error."""
        # A project without Hypothesis does not spend half of its start on importing it.
        plugins = ("-p", "pytest_ormbridge", "-p", "no:hypothesispytest")
        return self._run("-m", "pytest", *plugins, "-q", *arguments)

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run ``manage.py``; a warning is an error."""
        return self._run("manage.py", *arguments)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("DJANGO_", "PYTEST_", "ORMBRIDGE_"))
        }
        return subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            cwd=self.path,
            env={**environment, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=PROCESS_GUARD,
        )
