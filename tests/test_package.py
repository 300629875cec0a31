"""The shape of the package: its public names, its one-way imports, its size."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import ormbridge
from tests.core.gate import GUARD
from tests.core.support import run_python
from tests.support.package import (
    HOUSE,
    MODULES,
    SOURCE,
    imported,
    lines_of_code,
    module_name,
    names_imported,
)


def test_public_names():
    """These names are the public contract, sorted; nothing else is offered."""
    assert ormbridge.__all__ == [
        "BridgeError",
        "BridgeMiddleware",
        "DatabaseSyncToAsync",
        "LeaseClosed",
        "PoolClosed",
        "PoolStats",
        "PoolTimeout",
        "TransactionAborted",
        "aclose_old_connections",
        "atomic",
        "database_sync_to_async",
        "pinned",
        "release",
        "stats",
        "stream",
    ]
    for name in ormbridge.__all__:
        assert getattr(ormbridge, name).__doc__, name


def test_imports_point_one_way():
    """A part of the package imports those that it stands on, and nothing back."""
    assert {path.name for path in SOURCE.iterdir() if path.is_dir()} - {"__pycache__"} == {*HOUSE}
    for path in MODULES:
        part = path.relative_to(SOURCE).parts[0]
        if part in HOUSE:
            below = {*HOUSE[: HOUSE.index(part) + 1]}
            assert imported(path) <= below, f"{path} imports {imported(path) - below}"


def test_no_modules_import_each_other():
    """The imports of the package, those for the types too, make no circle."""
    names = {module_name(path): path for path in MODULES}
    left = {name: names_imported(path) & {*names} - {name} for name, path in names.items()}
    while left:
        free = [name for name, needs in left.items() if not needs & left.keys()]
        assert free, f"a circle is among {sorted(left)}"
        for name in free:
            del left[name]


def test_package_never_imports_the_plugin():
    """The pytest plugin stands on the package, not the other way round."""
    plugin = SOURCE.parent / "pytest_ormbridge"
    assert {path.name for path in plugin.glob("*.py")} == {"__init__.py", "leaks.py"}
    for path in MODULES:
        assert plugin.name not in path.read_text(), path


# What asgiref does not promise: read in core/asgiref.py alone.
PRIVATE = [
    *("_executor", "_old_executor", "_work_items", "_work_ready", "_work_thread", "_broken"),
    *("_restore_context", "_Storage", "loop_thread_executors", "executors"),
]


def test_inside_of_asgiref_is_read_in_one_file():
    """What is private to asgiref is named in core/asgiref.py, and nowhere else."""
    for path in MODULES:
        if path != SOURCE / "core/asgiref.py":
            tree = ast.walk(ast.parse(path.read_text()))
            named = {getattr(node, "attr", getattr(node, "name", None)) for node in tree}
            assert not named & {*PRIVATE}, f"{path} reads {named & {*PRIVATE}}"


def test_package_is_small():
    """Neither the core, nor ``green/``, nor the rest grows, and no module is long."""
    sizes = {path.relative_to(SOURCE).as_posix(): lines_of_code(path) for path in MODULES}
    wings = Counter[str]()
    for name, size in sizes.items():
        wings[name.partition("/")[0] if name.startswith(("core/", "green/")) else "rest"] += size
    assert 0 < wings["core"] < 1151
    assert 0 < wings["green"] < 514
    assert 0 < wings["rest"] < 2430
    assert max(sizes.values()) <= 180  # no module grows long


def test_no_file_of_tests_is_long():
    """No file of the tests, nor of what builds the site, has more than 800 lines."""
    tests = Path(__file__).parent
    files = [*tests.rglob("*.py"), *(tests.parent / "docs/_ext").rglob("*.py")]
    sizes = {path: len(path.read_text().splitlines()) for path in files}
    assert len(sizes) > 200
    assert {path: size for path, size in sizes.items() if size > 800} == {}


def test_no_file_of_tests_imports_from_another():
    """What tests share lies beside them, in modules that are no tests."""
    from_tests = re.compile(r"^ *from tests[.\w]*(?:\.| import )test_.*", re.MULTILINE)
    files = Path(__file__).parent.rglob("*.py")
    assert [
        (path, *found) for path in files if (found := from_tests.findall(path.read_text()))
    ] == []


def test_core_stands_alone(tmp_path):
    """The core and its tests pass without the wings, with nothing but Django and asgiref."""
    # Bytecode comes and goes there while other sessions run from the same tree.
    sources_only = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "core", tmp_path / "ormbridge/core", ignore=sources_only)
    (tmp_path / "ormbridge/__init__.py").touch()
    tests = Path(__file__).parent / "core"
    shutil.copytree(tests, tmp_path / "tests/core", ignore=sources_only)
    (tmp_path / "tests/__init__.py").touch()
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nDJANGO_SETTINGS_MODULE = tests.core.settings\nasyncio_mode = auto\n"
        "pythonpath = .\ndjango_find_project = false\n"
    )
    variables = {name: value for name, value in os.environ.items() if "ORMBRIDGE" not in name}
    variables = {k: v for k, v in variables.items() if not k.startswith(("PYT", "DJANGO"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:ormbridge", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/core"], cwd=tmp_path, env=variables, capture_output=True, text=True,
        check=False, timeout=10 * GUARD,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) > 250


def test_package_is_typed():
    """The package ships its types."""
    assert (SOURCE / "py.typed").exists()


def test_import_brings_no_wings():
    """Who imports the bridge has the core; the first call loads what looks after connections."""
    result = run_python(
        """
        import sys
        from ormbridge import database_sync_to_async, stats

        def loaded():
            return sorted({n.split(".")[1] for n in sys.modules if n.startswith("ormbridge.")})

        print(loaded())
        stats()
        print(loaded())
        """
    )
    core, wings = ["core"], ["blocks", "core", "postgres"]
    assert (result.returncode, result.stdout) == (0, f"{core}\n{wings}\n"), result.stderr


def test_import_refuses_bad_settings():
    """Where Django has its settings, importing the bridge fails if they are wrong."""
    result = run_python(
        """
        from django.conf import settings
        settings.configure(ORMBRIDGE={"TIMEOUT": 0})
        from ormbridge import database_sync_to_async
        """
    )
    assert result.returncode == 1
    assert "ImproperlyConfigured: settings.ORMBRIDGE['TIMEOUT'] is 0" in result.stderr


def test_import_before_settings_is_fine():
    """The package can be imported before Django has its settings."""
    result = run_python("import ormbridge", ASGI_THREADS="2", DJANGO_SETTINGS_MODULE="")
    assert (result.returncode, result.stderr) == (0, "")
