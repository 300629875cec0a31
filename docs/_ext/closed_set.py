"""The closed set: nothing on a page that was not run, nothing run that no page shows.

Every build checks all of it, whatever pages it reads:

* a page shows no Python but what ``example`` brought in, and ``source`` from the package: no fence,
  no ``code-block``, no ``literalinclude``, also none that hides behind another language or none;
* every module in ``examples/<page>/`` is shown as a whole by some page;
* every example has a recording made from the source it has today, and no recording is left over;
* every package in ``examples/`` has tests in ``tests/<name>/``. It is an application to start, too
  large for a page, so none has to show it.

An example has a recording only if a test ran it, so the third point also finds untested examples.
"""

import ast

from docutils import nodes
from pygments.lexers import PythonConsoleLexer, PythonLexer
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

from . import SAFE
from .examples import shown
from .record import recordings

logger = logging.getLogger(__name__)

PYTHON = {*PythonLexer.aliases, *PythonConsoleLexer.aliases}
PYTHON |= {"py3", "pycon3", "ipython", "ipython3", "doctest"}
STATEMENTS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def find_strays(app: Sphinx, doctree: nodes.document) -> None:
    """Warn of Python on the page just read that no example brought in."""
    for block in doctree.findall(
        lambda node: isinstance(node, (nodes.literal_block, nodes.doctest_block))
    ):
        if block.get("from_a_file") or not is_python(block):
            continue
        app.env.note_reread()
        first = next(iter(block.astext().strip().splitlines()), "")
        logger.warning(
            "Python that no test runs (%r); move it to examples/<page>/<name>.py, "
            "let a test run it, and show it with the 'example' directive",
            first,
            location=block,
            type="example",
        )


def is_python(block: nodes.Element) -> bool:
    """Return whether *block* shows Python, whatever language it declares."""
    if isinstance(block, nodes.doctest_block) or block.get("language") in PYTHON:
        return True
    if str(block.get("source", "")).endswith((".py", ".pyi")):
        return True
    if block.get("language") not in (None, "", "none", "text", "default"):
        return False
    try:
        body = ast.parse(block.astext()).body
    except SyntaxError:
        return False
    return any(isinstance(each, STATEMENTS) for each in body)


def check_examples(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Warn of examples that no page shows, and of recordings that do not hold."""
    root = env.srcdir.parent
    places = shown(env)
    for name in recordings.examples(root):
        if name not in places:
            remedy = "show it with the 'example' directive or delete it"
            logger.warning(f"no page shows examples/{name}.py as a whole; {remedy}", type="example")
    for package in sorted((root / "examples").glob("*/__init__.py")):
        name = package.parent.name
        if not any((root / "tests" / name).glob("test_*.py")):
            remedy = f"add one to tests/{name} or delete it"
            logger.warning(f"no test starts examples/{name}; {remedy}", type="example")
    for problem in recordings.problems(root):
        where = places.get(problem.name)
        logger.warning("%s: %s", problem.path, problem.message, location=where, type="example")
    return []


def setup(app: Sphinx) -> ExtensionMetadata:
    """Add the checks."""
    app.connect("doctree-read", find_strays)
    app.connect("env-updated", check_examples)
    return SAFE
