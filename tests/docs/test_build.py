"""``nox -s docs``: what it asks of Sphinx, and the names that its reference documents."""

import ast
import re
import shutil
import subprocess
import sys
import zlib

import ormbridge
import pytest_ormbridge
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


def test_reference_names_what_is_imported(site: Site):
    """Each public name is documented under the name that one imports; a fixture under its own."""
    page = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```{eval-rst}\n.*?^```$", page, flags=re.MULTILINE | re.DOTALL)
    site.write("docs/guide.md", "# API\n\n" + "\n\n".join(blocks) + "\n")
    shutil.copytree(ROOT / "docs/_inventories", site.path("docs/_inventories"))
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-c", str(ROOT), "docs", "out"],
        cwd=site.root,
        capture_output=True,
        timeout=120,
        check=True,
    )
    inventory = (site.output / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(inventory).decode().splitlines()
    names = {line.split()[0] for line in lines if " py:" in line}
    fixtures = {name for name in vars(pytest_ormbridge) if is_fixture(name)}
    assert fixtures
    expected = fixtures | {f"ormbridge.{name}" for name in ormbridge.__all__}
    assert expected - names == set()
    assert {name for name in names if name.count("ormbridge") > 1} == set()


def is_fixture(name: str) -> bool:
    return type(getattr(pytest_ormbridge, name)).__name__ == "FixtureFunctionDefinition"
