"""The README shows a tested example, and the CI runs its commands."""

import re
from pathlib import Path

from docs._ext.record.markers import excerpt

ROOT = Path(__file__).parents[1]


def fences(language: str) -> list[str]:
    """Return the code blocks of the README in *language*."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)


def test_snippets_are_examples() -> None:
    """What Python the README shows is the inline form of the guide, which the tests of that run."""
    example = (ROOT / "examples/database_access/inline.py").read_text(encoding="utf-8")

    assert [excerpt(example).text] == fences("python")


def test_ci_runs_the_commands() -> None:
    """The CI runs both commands as the README has them; ``.ci/run`` reads them from there."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    commands = "".join(fences("console")).splitlines()

    assert commands == re.findall(r"run: (python3 -m pip install nox && .*)", workflow)


def test_pyenv_offers_each_supported_python() -> None:
    """``.python-version`` lists the Pythons that the classifiers name."""
    classifiers = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    supported = re.findall(r"Programming Language :: Python :: (3\.\d+)", classifiers)

    assert supported == (ROOT / ".python-version").read_text(encoding="utf-8").split()
