"""The landing page: the same program before and after the fix, and when its calls ran."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from docs._ext.record.spans import Span
from tests.support.examples import example_source

# How long the calls take decides nothing here: on how many threads they run is tested with
# barriers in test_database_access.py.

ROOT = Path(__file__).parents[2]
WATCHER = """
import asyncio, dataclasses, json
from pathlib import Path
import program
from tests.support.timeline import Timeline

timeline = Timeline()
timeline.watch(program, "query")
asyncio.run(program.main())
Path("spans.json").write_text(json.dumps([dataclasses.asdict(each) for each in timeline.spans]))
"""


@pytest.fixture
def run_watched(run_script, recorded, recorded_timeline, tmp_path):
    """Return a function that runs a program and records, of one run, output and timeline."""

    def run(name):
        (tmp_path / "program.py").write_text(example_source(name))
        # The same bound on every machine. This process has the path of the tests, too.
        output = run_script(WATCHER, PYTHONPATH=f"{ROOT / 'src'}:{ROOT}", ASGI_THREADS="10")
        found = json.loads((tmp_path / "spans.json").read_text())
        spans = [Span(**{**each, "connections": tuple(each["connections"])}) for each in found]
        recorded(name, output)
        recorded_timeline(name, SimpleNamespace(spans=spans), overlaps=False)
        return spans

    return run


def test_before(run_watched):
    """Twenty calls of 50 ms at once through ``channels.db``: one thread makes them."""
    spans = run_watched("index/before")
    assert (20, 1) == (len(spans), len({span.thread for span in spans}))


def test_after(run_watched):
    """Twenty calls of 50 ms at once through the bridge, where ten threads may run."""
    spans = run_watched("index/after")
    assert (20, 10) == (len(spans), len({span.thread for span in spans}))


def test_fix_is_one_line():
    """The program before and the program after differ in the line of the import alone."""
    before = example_source("index/before").split("\n")
    after = example_source("index/after").split("\n")
    assert [line for line in before if line and line not in after] == [
        "from channels.db import database_sync_to_async  # <--"
    ]
    assert [line for line in after if line and line not in before] == [
        "from ormbridge import database_sync_to_async  # <--"
    ]
