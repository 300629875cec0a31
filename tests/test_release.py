"""The release: what is published was built by ``nox -s package`` and is trusted by name alone."""

import re
from pathlib import Path

import yaml

import ormbridge

ROOT = Path(__file__).parents[1]
WORKFLOWS = ROOT / ".github" / "workflows"
RELEASE = yaml.safe_load((WORKFLOWS / "release.yml").read_text(encoding="utf-8"))
# YAML 1.1 reads the key `on` as a truth value.
TRIGGER = RELEASE[True]


def commands(job: str) -> list[str]:
    """Return what a job runs."""
    return [step["run"] for step in RELEASE["jobs"][job]["steps"] if "run" in step]


def actions(job: str) -> list[str]:
    """Return the actions that a job uses, without their versions."""
    steps = RELEASE["jobs"][job]["steps"]
    return [step["uses"].partition("@")[0] for step in steps if "uses" in step]


def sessions() -> set[str]:
    """Return the names of the sessions of nox, read: nox itself may not be installed here."""
    text = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    found = re.findall(r"@nox\.session(?:\((.*)\))?\n(?:@.*\n)*def (\w+)", text)
    return {(re.findall(r'name="([\w-]+)"', options) or [name])[0] for options, name in found}


def test_tag_begins_a_release() -> None:
    """Nothing but a tag of a version does."""
    assert {"push": {"tags": ["v*"]}} == TRIGGER


def test_what_is_published_was_built_and_checked() -> None:
    """It is built by the session ``package``, after all that must hold, and published as it is."""
    run = [name for each in commands("build") for name in re.findall(r"nox -s (.*)", each)]
    named = " ".join(run).split()

    assert [name for name in named if name not in sessions()] == []
    assert named[-1] == "package"
    assert {"lint", "typing", "tests", "docs"} <= set(named)
    assert commands("publish") == []
    assert RELEASE["jobs"]["publish"]["needs"] == "build"
    assert actions("publish") == ["actions/download-artifact", "pypa/gh-action-pypi-publish"]


def test_folder_is_that_of_the_session() -> None:
    """What is uploaded lies where the session builds to."""
    (upload,) = [
        step for step in RELEASE["jobs"]["build"]["steps"] if "upload-artifact" in str(step)
    ]
    assert upload["with"]["path"] == "build/dist/"
    assert '"--outdir", "build/dist"' in (ROOT / "noxfile.py").read_text(encoding="utf-8")


def test_index_trusts_the_workflow_and_no_password() -> None:
    """Only the job that publishes may say who it is, in an environment; no secret is read."""
    text = (WORKFLOWS / "release.yml").read_text(encoding="utf-8")
    assert RELEASE["permissions"] == {"contents": "read"}
    assert "permissions" not in RELEASE["jobs"]["build"]
    assert RELEASE["jobs"]["publish"]["permissions"] == {"id-token": "write"}
    assert RELEASE["jobs"]["publish"]["environment"] == "release"
    assert "secrets." not in text


def test_tag_is_compared_with_the_version() -> None:
    """The line that the workflow looks for is in the package."""
    line = f'__version__ = "{ormbridge.__version__}"'
    source = (ROOT / "src" / "ormbridge" / "__init__.py").read_text(encoding="utf-8")
    assert line in source.splitlines()
    assert any("GITHUB_REF_NAME#v" in each and "__version__" in each for each in commands("build"))
