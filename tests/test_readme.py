"""The README says what the first screen of the site says, and the CI runs its commands."""

import re
from pathlib import Path

from docs._ext.record import recordings
from docs._ext.record.markers import excerpt

ROOT = Path(__file__).parents[1]


def fences(language: str) -> list[str]:
    """Return the code blocks of the README in *language*."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE)


def example(name: str) -> list[str]:
    """Return the lines of an example, as a page shows them."""
    path = recordings.example_path(ROOT, name)
    return excerpt(path.read_text(encoding="utf-8")).text.splitlines()


def test_change_is_that_of_the_examples() -> None:
    """The two lines that the README shows are what the two programs differ in."""
    before, after = example("index/before"), example("index/after")
    gone = [f"-{line}" for line in before if line and line not in after]
    come = [f"+{line}" for line in after if line and line not in before]

    assert ["\n".join([*gone, *come, ""])] == fences("diff")


def test_figures_are_those_of_the_recordings() -> None:
    """README and card name the seconds that the two programs took as they were recorded."""
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "conf.py")]
    for name in ("index/before", "index/after"):
        (printed,) = recordings.load(ROOT, name).output
        (seconds,) = re.findall(r"\d+\.\d+ s", printed)
        assert [seconds in text for text in texts] == [True, True], seconds


def test_way_to_install_is_that_of_the_site() -> None:
    """The README installs from a checkout as long as the site does."""
    conf = (ROOT / "conf.py").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert ("\nRELEASED = False\n" in conf) == ("`python3 -m pip install .`" in readme)


def test_links_lead_somewhere_from_a_package_page() -> None:
    """Once released, links and picture are addresses: beside a package page there is no docs/."""
    conf = (ROOT / "conf.py").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    beside_it = re.findall(r"\]\((?!https://)(.*?)\)", readme)
    assert ("\nRELEASED = False\n" in conf) == bool(beside_it), beside_it
    assert [] == [each for each in beside_it if not (ROOT / each).exists()]


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
