"""``nox -s docs``: what it asks of Sphinx."""

import ast
import subprocess
import sys

from tests.docs.conftest import ROOT, Site


def strictness() -> list[str]:
    """Return the options of sphinx-build that the noxfile calls strict.

    Read, not imported: nox itself is not a part of what its sessions have installed.
    """
    for node in ast.walk(ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))):
        match node:
            case ast.Assign(targets=[ast.Name(id="strict")], value=value):
                return list(ast.literal_eval(value))
    raise AssertionError("the noxfile has no strict options")


def test_broken_reference_fails_the_second_build_too(site: Site):
    """A reference that leads nowhere fails the build each time, until it is put right."""
    site.write("conf.py", 'extensions = ["myst_parser"]\nexclude_patterns = ["index.md"]\n')
    site.write("docs/guide.md", "# Guide\n\nSee {py:func}`nowhere`.\n")
    site.write("docs/proven.md", "# Proven\n\n```{toctree}\nguide\n```\n")
    places = ["-c", ".", "-d", "doctrees", "-D", "root_doc=proven", "docs", "out"]
    builds = [
        subprocess.run(
            [sys.executable, "-m", "sphinx", "-q", "-b", "html", *strictness(), *places],
            cwd=site.root,
            capture_output=True,
            text=True,
            timeout=120,
        )
        for _ in range(2)
    ]
    for build in builds:
        assert build.returncode == 1, build.stderr
        assert "py:func reference target not found: nowhere" in build.stderr
