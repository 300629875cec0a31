"""A small project with one example, in which the plugin that records is run."""

import pytest

PROJECT = {
    "examples/greeting.py": "print('Hello, ada')\n",
    "test_greeting.py": """\
import pytest

@pytest.mark.parametrize("name", ["ada", "bob"])
def test_greets(recorded, name):
    recorded("greeting", f"Hello, {NAMES.get(name, 'ada')}")

def test_plain():
    assert PLAIN

NAMES = {}
PLAIN = True
""",
}


def make_project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Make a project with one example and two tests."""
    # The plugin of the project is all that its tests need.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]")
    for name, text in PROJECT.items():
        path = pytester.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return pytester


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run the tests of *project* with the plugin and nothing else."""
    return project.runpytest_inprocess("-p", "tests.support.recording", *arguments)


def change(project: pytest.Pytester, old: str, new: str, name: str = "test_greeting.py") -> None:
    """Replace *old* in a file of *project*."""
    text = (project.path / name).read_text()
    assert old in text
    (project.path / name).write_text(text.replace(old, new))
