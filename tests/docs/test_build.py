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
from tests.support.package import lines_of_code


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
    # The name that people write is a function, with the docstring of the class that it is.
    assert any(line.startswith("ormbridge.database_sync_to_async py:function ") for line in lines)
    html = site.html("guide").partition('id="ormbridge.database_sync_to_async"')[2]
    assert "Call a synchronous function that uses the database" in html.partition("</dd>")[0]


def is_fixture(name: str) -> bool:
    return type(getattr(pytest_ormbridge, name)).__name__ == "FixtureFunctionDefinition"


def sections_of_reference() -> list[tuple[str, str]]:
    """Return each name that the reference documents, and what stands behind it."""
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    begins = r"^\.\. (?:auto)?(?:function|class|exception|data):: "
    pieces = re.split(begins, page, flags=re.MULTILINE)[1:]
    return [
        (re.match(r"[\w.]+", each)[0].rpartition(".")[2], each.partition("\n## ")[0])
        for each in pieces
    ]


def test_public_names_have_an_example():
    """Behind each name is a block that uses it, or a link to a page that shows it."""
    documented = sections_of_reference()
    fixtures = {name for name in vars(pytest_ormbridge) if is_fixture(name)}
    assert {name for name, _ in documented} >= {*fixtures, *ormbridge.__all__}
    for name, text in documented:
        assert re.search(r"^Example:", text, re.MULTILINE), name
        files = [f"examples/{each}.py" for each in re.findall(r"{example} (\S+)", text)]
        for link in re.findall(r"\]\((\S+?\.md)", text):
            page = (ROOT / "docs/reference" / link).resolve()
            files.append(page.relative_to(ROOT).as_posix())
            shown = re.findall(r"{example} (\S+)", page.read_text(encoding="utf-8"))
            files += [f"examples/{each}.py" for each in shown]
        sources = [(ROOT / each).read_text(encoding="utf-8") for each in files]
        assert any(re.search(rf"\b{name}\b", source) for source in sources), name


def test_extensions_stay_small(record_property):
    """What Sphinx offers is used: the extensions of the site are at most 1,739 lines of code."""
    size = sum(lines_of_code(path) for path in (ROOT / "docs/_ext").rglob("*.py"))
    record_property("figure", f"docs/_ext has {size:,} lines of code.")
    assert 0 < size <= 1739
