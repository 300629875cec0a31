"""Proofs: the tests that sentences name, found in the tree without importing anything.

A test is named by its pytest id without parameters: ``tests/guide/test_x.py::test_y``, with the
class between if there is one. Its source is the text of its function from the first decorator on,
so that a comment or another line break counts as a change too. What the test calls is not part of
it: that a change there breaks a test is found by running it.
"""

import ast
import functools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .seals import digest


class UnknownTestError(ValueError):
    """A name that no test in the tree has."""


@dataclass(frozen=True)
class Proof:
    """A test as it stands in the tree."""

    test: str
    path: str
    line: int
    docstring: str
    source: str

    @property
    def sha256(self) -> str:
        """The digest of the source."""
        return digest(self.source)


_Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@functools.lru_cache(maxsize=256)
def _parse(path: Path, _changed: int) -> tuple[list[str], dict[str, _Named]]:
    text = path.read_text(encoding="utf-8")
    return text.splitlines(), dict(_named_in(ast.parse(text)))


def _named_in(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, _Named]]:
    """Yield what *node* defines, also inside an ``if``: a test may need a certain database."""
    for each in ast.iter_child_nodes(node):
        if isinstance(each, _Named):
            yield prefix + each.name, each
            yield from _named_in(each, f"{prefix}{each.name}::")
        elif isinstance(each, ast.If):
            yield from _named_in(each, prefix)


def find(root: Path, test: str) -> Proof:
    """Return the test with the id *test* from the tree, without importing it.

    :raises UnknownTestError: if there is no such test.
    """
    file, _, name = test.partition("::")
    path = root / file
    if not name or "[" in name:
        raise UnknownTestError(
            f"'{test}' does not name a test; write tests/<file>.py::<test>, without parameters"
        )
    if not path.is_file():
        raise UnknownTestError(
            f"no test '{test}': {file} does not exist; correct the name or add the test"
        )
    lines, named = _parse(path, path.stat().st_mtime_ns)
    if (node := named.get(name)) is None:
        raise UnknownTestError(
            f"no test '{test}': {file} has no '{name}'; correct the name or add the test"
        )
    if isinstance(node, ast.ClassDef):
        raise UnknownTestError(f"'{test}' is a class; name one test of it")
    start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    source = textwrap.dedent("\n".join(lines[start - 1 : node.end_lineno])) + "\n"
    return Proof(test, file, start, ast.get_docstring(node) or "", source)
