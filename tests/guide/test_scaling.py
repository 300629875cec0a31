"""The page ``guide/scaling``: its budget follows from what was measured."""

import json
from pathlib import Path

import pytest

from tests.bench.budget import budget

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "docs/_recorded/stack.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("server", RESULTS["budget"])
@pytest.mark.parametrize("sockets", [1_000, 100_000])
def test_budget_follows_from_the_figures(server, sockets):
    """What the page says that sockets need is computed from what one process did."""
    said = RESULTS["budget"][server]
    one = RESULTS["servers"][server]["1"]["idle"]
    assert said["one"]["messages"] == one["messages"]["median"]
    assert said["one"]["kib"] == one["kib"]
    assert said[str(sockets)] == budget(sockets, said["one"])
