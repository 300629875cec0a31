"""The page ``howto/notebooks``: its cells, in a kernel of their own."""

import os
import re
from pathlib import Path

import nbclient
import nbformat
import pytest

import ormbridge
from tests.core.gate import GUARD
from tests.support.examples import example_source
from tests.support.project import Project


@pytest.fixture
def notebook(tmp_path):
    """Return a function that runs cells beside ``manage.py`` and returns what each displays."""
    project = Project(tmp_path / "project", "sqlite, on disk")
    assert project.manage("migrate").returncode == 0

    def run(cells, **environment):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(each) for each in cells])
        client = nbclient.NotebookClient(
            book,
            timeout=GUARD,
            allow_errors=True,
            resources={"metadata": {"path": str(project.path)}},
        )
        source = str(Path(ormbridge.__file__).parents[1])
        # The settings of the tests are none of the notebook's business.
        usual = {name: value for name, value in os.environ.items() if "DJANGO" not in name}
        client.execute(env={**usual, "PYTHONPATH": source, **environment})
        return [displayed(each) for each in book.cells]

    return run


def displayed(cell):
    """Return what *cell* shows below itself, as a reader sees it."""
    lines = []
    for output in cell.outputs:
        match output.output_type:
            case "error":
                lines.append(f"{output.ename}: {output.evalue}")
            case "stream":
                lines.append(output.text.rstrip())
            case _:
                lines.append(output.data["text/plain"])
    return "\n".join(lines)


def cells_of(name):
    """Return the cells of an example: ``# %%`` begins one."""
    return re.split(r"^# %%\n", example_source(name), flags=re.MULTILINE)[1:]


def shown(cells, outputs):
    """Return the outputs under the first line of their cells."""
    return "\n".join(
        f"{cell.strip().splitlines()[-1]}\n    {output}"
        for cell, output in zip(cells, outputs, strict=True)
        if output
    )


def test_cells(notebook, recorded):
    """A query in a cell raises; ``await``, ``async for`` and ``async with`` stand there as is."""
    cells = cells_of("notebooks/cells")
    recorded("notebooks/cells", shown(cells, notebook(cells)))


def test_queryset_is_refused(notebook):
    """A queryset that a cell ends with is refused: the notebook runs its query to display it."""
    output = notebook([cells_of("notebooks/cells")[0], "User.objects.all()"])[-1]
    assert output.startswith("SynchronousOnlyOperation: You cannot call this from an async context")


def test_run_is_refused(notebook):
    """The kernel's loop runs already: ``asyncio.run`` in a cell raises."""
    (output,) = notebook(["import asyncio\nasyncio.run(asyncio.sleep(0))"])
    assert "RuntimeError: asyncio.run() cannot be called from a running event loop" in output


def test_cells_gather(notebook):
    """Calls that a cell gathers run at the same time, each on a worker."""
    source = """
import asyncio, threading
from ormbridge import database_sync_to_async
together = threading.Barrier(3, timeout=60)
def call():
    together.wait()
    return threading.current_thread().name
calls = [database_sync_to_async(call)() for _ in range(3)]
sorted(await asyncio.gather(*calls))
"""
    set_up = cells_of("notebooks/cells")[0]
    output = notebook([set_up, source])[-1]
    assert output == "['ormbridge-worker-1', 'ormbridge-worker-2', 'ormbridge-worker-3']"


def test_unsafe_in_a_block(notebook):
    """With the variable, a plain query in a block is no part of it, and stays."""
    source = """
try:
    async with atomic():
        User.objects.create(username="plain")
        await User.objects.acreate(username="awaited")
        raise ValueError
except ValueError:
    pass
[user.username async for user in User.objects.all()]
"""
    cells = [cells_of("notebooks/cells")[0], source]
    assert notebook(cells, DJANGO_ALLOW_ASYNC_UNSAFE="true")[-1] == "['plain']"
