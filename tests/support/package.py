"""The modules of the package: what they stand on, what they import, how long they are."""

import ast
import io
import tokenize
from pathlib import Path

import ormbridge

SOURCE = Path(ormbridge.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

# What stands on what: each of these may import those before it, and none after. What is beside
# them, the checks and the public names, may import them all.
HOUSE = ["core", "postgres", "leases", "asgi", "blocks", "green", "streaming", "testing"]


def module_name(path):
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def names_imported(path):
    """Return what the module at *path* imports of the package, by its full name, for types too."""
    package = path.relative_to(SOURCE.parent).parts[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += filter(None, [node.module])
            names.update([".".join(base), *(".".join([*base, each.name]) for each in node.names)])
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name for name in names if name.startswith("ormbridge.")}


def imported(path):
    """Return the parts of the package that the module at *path* imports, for its types too."""
    return {name.split(".")[1] for name in names_imported(path)}


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
