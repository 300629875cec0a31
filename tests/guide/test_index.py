"""The landing page: the same program before and after the fix."""

from tests.support.examples import example_source

# How long the calls take decides nothing here: on how many threads they run is tested with
# barriers in test_database_access.py.


def test_before(run_script, recorded):
    """Twenty calls of 50 ms at once through ``channels.db``."""
    recorded("index/before", run_script(example_source("index/before")))


def test_after(run_script, recorded):
    """Twenty calls of 50 ms at once through the bridge."""
    recorded("index/after", run_script(example_source("index/after")))


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
