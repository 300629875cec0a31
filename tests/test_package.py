"""The shape of the package: its public names, its one-way imports, its size."""

import ast
import io
import tokenize
from pathlib import Path

import ormbridge
from tests.core.support import run_python

SOURCE = Path(ormbridge.__file__).parent
MODULES = sorted(SOURCE.glob("*.py"))

# The way of a call: each module may import those after it, and none before. What is not on the
# way (errors, settings) imports nothing but what is after it either.
ORDER = [
    "__init__",
    "testing",
    "queries",
    "ending",
    "leaks",
    "checks",
    "transactions",
    "pinning",
    "streaming",
    "source",
    "bridge",
    "middleware",
    "context",
    "process",
    "frame_lease",
    "lease",
    "generators",
    "turns",
    "call",
    "route",
    "canceller",
    "threadless",
    "pool",
    "worker",
    "crew",
    "chunks",
    "connections",
    "witness",
    "mailbox",
    "frames",
    "stats",
    "settings",
    "errors",
]


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


def imported(path):
    """Return the modules of the package that the module at *path* imports, wherever."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names.update([node.module] if node.module else [alias.name for alias in node.names])
    return names


def for_types_only(path):
    """Return those that it imports only for the type checker."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            names.update(child.module for child in node.body if isinstance(child, ast.ImportFrom))
    return names


def test_imports_point_one_way():
    """The modules import each other in one direction only: along the way of a call."""
    assert sorted(path.stem for path in MODULES) == sorted(ORDER)
    for path in MODULES:
        place = ORDER.index(path.stem)
        back = {
            name for name in imported(path) - for_types_only(path) if ORDER.index(name) <= place
        }
        assert back == set(), f"{path.name} imports back: {back}"


def lines_of_code(path):
    """Count the lines that hold code: no blank lines, comments or docstrings."""
    source = path.read_text()
    lines = set()
    skipped = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and ast.get_docstring(node) is not None
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_docstring = token.type == tokenize.STRING and token.start[0] in docstrings
        if token.type not in skipped and not is_docstring:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


def test_package_is_small():
    """The package stays under 3,750 lines of code."""
    assert 0 < sum(map(lines_of_code, MODULES)) < 3750


def test_package_is_typed():
    """The package ships its types."""
    assert (SOURCE / "py.typed").exists()


def test_import_refuses_bad_settings():
    """Where Django has its settings, importing the package fails if they are wrong."""
    result = run_python(
        """
        from django.conf import settings
        settings.configure(ORMBRIDGE={"TIMEOUT": 0})
        import ormbridge
        """
    )
    assert result.returncode == 1
    assert "ImproperlyConfigured: settings.ORMBRIDGE['TIMEOUT'] is 0" in result.stderr


def test_import_before_settings_is_fine():
    """The package can be imported before Django has its settings."""
    result = run_python("import ormbridge", ASGI_THREADS="2", DJANGO_SETTINGS_MODULE="")
    assert (result.returncode, result.stderr) == (0, "")
