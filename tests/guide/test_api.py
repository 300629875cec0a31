"""The page ``reference/api``: the examples of names that the guide does not show."""

import pytest

import ormbridge

EXAMPLES = {
    "derive": ("DatabaseSyncToAsync", "report: "),
    "bridge_error": ("BridgeError", "not now: PoolTimeout"),
    "pool_stats": ("PoolStats", "room for 4 calls"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples(run_example, recorded, name):
    """Each shows the name of which it is the example, and prints what it says."""
    imported, printed = EXAMPLES[name]
    assert imported in ormbridge.__all__
    output = run_example(f"api/{name}", "-W", "error")
    assert output.startswith(printed)
    recorded(f"api/{name}", output)
