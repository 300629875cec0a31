"""What ``tests/support/timeline.py`` watches, and the fixture that compares it with a recording."""

import asyncio
import json
import threading
from types import SimpleNamespace

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from channels.consumer import SyncConsumer
from channels.exceptions import StopConsumer
from django.db import connection

from docs._ext.record import recordings, spans
from docs._ext.record.spans import Span
from ormbridge import database_sync_to_async
from tests.core.gate import GUARD
from tests.support.greeting import change, make_project, run
from tests.support.timeline import Timeline

ROOT = recordings.Path(__file__).parents[1]

project = pytest.fixture(make_project)


def seen(timeline: Timeline) -> list[tuple[str, str, str]]:
    """Return the place, the call and the thread of each span."""
    return sorted((span.where, span.call, span.thread) for span in timeline.spans)


# The recordings of this project.


def test_every_timeline_belongs_to_its_example():
    """Each timeline was recorded with the example that stands there now."""
    for name in spans.names(ROOT):
        assert spans.load(ROOT, name).example == f"{spans.example_of(name)}.py"


# What is watched.


async def test_call_of_the_bridge_is_watched():
    """A decorated function is noted with its thread, and with the place that awaited it."""
    module = SimpleNamespace(query=database_sync_to_async(lambda: threading.current_thread().name))
    timeline = Timeline()
    timeline.watch(module, "query")
    with timeline.within("socket 1"):
        thread = await module.query()
    assert seen(timeline) == [("socket 1", "query", thread)]
    (span,) = timeline.spans
    assert 0 == span.asked <= span.began <= span.ended


async def test_waiting_is_seen(gate, pool_settings):
    """A call that waits for the only worker was asked for before the other ended."""
    pool_settings(MAX_THREADS=1)
    module = SimpleNamespace(query=database_sync_to_async(gate))
    module.query.__name__ = "query"
    timeline = Timeline()
    timeline.watch(module, "query")
    calls = [asyncio.create_task(module.query()) for _ in range(2)]
    await gate.entered()
    gate.open.set()
    await asyncio.gather(*calls)
    first, second = timeline.spans
    assert second.asked < first.ended <= second.began


async def test_scopes_are_numbered():
    """Sockets and requests have names in the order in which they come."""

    class Consumer(SyncConsumer):
        def test_stop(self, event):
            raise StopConsumer

    timeline = Timeline()
    timeline.watch(Consumer, "test_stop")
    application = timeline.application(Consumer.as_asgi())
    for kind in ("websocket", "http", "websocket"):
        client = ApplicationCommunicator(application, {"type": kind})
        await client.send_input({"type": "test.stop"})
        await client.wait(GUARD)
    assert [(where, call) for where, call, _ in seen(timeline)] == [
        ("request 1", "test_stop"),
        ("socket 1", "test_stop"),
        ("socket 2", "test_stop"),
    ]


async def test_held_thread_is_watched():
    """A request that holds its thread does so from its first call to its end."""
    module = SimpleNamespace(query=lambda: None)
    timeline = Timeline()
    timeline.watch(module, "query")

    async def application(scope, receive, send):
        await sync_to_async(module.query)()

    await timeline.application(application, holds=True)({"type": "http"}, None, None)
    held, call = timeline.spans
    assert (held.held, call.held, held.where) == (True, False, "request 1")
    assert held.thread == call.thread
    assert held.began == call.began <= call.ended <= held.ended


async def test_request_that_changes_threads_does_not_hold_one():
    """What is drawn as held was on one thread."""
    module = SimpleNamespace(query=lambda: None)
    timeline = Timeline()
    timeline.watch(module, "query")

    async def application(scope, receive, send):
        module.query()
        await sync_to_async(module.query)()

    with pytest.raises(AssertionError, match="request 1 was not held on one thread"):
        await timeline.application(application, holds=True)({"type": "http"}, None, None)


async def test_connections_are_numbered(transactional_db):
    """A call is noted with the connection it had; the same one keeps its number."""
    module = SimpleNamespace(query=database_sync_to_async(lambda: connection.ensure_connection()))
    timeline = Timeline()
    timeline.watch(module, "query")
    await module.query()
    await module.query()
    await database_sync_to_async(lambda: connection.close())()
    await module.query()
    assert [span.connections for span in timeline.spans] == [(1,), (1,), (2,)]


# How runs are compared.

ONE = Span("query", "socket 1", "worker-1", (1,), 0.0, 0.0, 0.1)
OTHER = Span("query", "socket 2", "worker-2", (2,), 0.0, 0.05, 0.2)
LATER = Span("query", "socket 2", "worker-2", (2,), 0.0, 0.1, 0.2)


def test_structure_has_no_times():
    """Threads, connections, spans and who ran beside whom are compared; times are not."""
    assert spans.structure([ONE, OTHER]) == {
        "threads": 2,
        "connections": 2,
        "spans": ["socket 1: query", "socket 2: query"],
        "at once": 2,
        "overlaps": ["socket 1 and socket 2"],
    }


def test_one_after_the_other_do_not_overlap():
    """A call that begins as another ends did not run beside it."""
    found = spans.structure([ONE, LATER])
    assert (found["at once"], found["overlaps"]) == (1, [])


def test_overlaps_can_be_left_out():
    """Without the overlaps, two runs on a busy and on an idle machine are the same."""
    assert spans.structure([ONE, LATER], overlaps=False) == spans.structure(
        [ONE, OTHER], overlaps=False
    )


# The fixture, run on a small project.

WATCHES = """\
from types import SimpleNamespace
from tests.support.timeline import Timeline

def test_watches(recorded_timeline):
    module = SimpleNamespace(greet=lambda: None)
    timeline = Timeline()
    timeline.watch(module, "greet")
    for number in (1, 2):
        with timeline.within(f"socket {number}"):
            module.greet()
    recorded_timeline("greeting", timeline)
"""


@pytest.fixture
def watched(project: pytest.Pytester) -> pytest.Pytester:
    """Make a project whose only test watches its example."""
    (project.path / "test_greeting.py").write_text(WATCHES)
    return project


def test_recorded_timeline_passes(watched: pytest.Pytester):
    """After ``--record`` the same structure passes; the file carries the environment."""
    run(watched, "--record").assert_outcomes(passed=1)
    data = json.loads(spans.timeline_path(watched.path, "greeting").read_text())
    assert data["environment"].keys() == {"database", "python", "django", "channels", "asgiref"}
    assert [span["where"] for span in data["spans"]] == ["socket 1", "socket 2"]
    run(watched).assert_outcomes(passed=1)


def test_another_structure_fails(watched: pytest.Pytester):
    """A run of another structure fails with the difference and the remedy."""
    run(watched, "--record")
    change(watched, "(1, 2)", "(1, 2, 3)")
    result = run(watched)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["timeline 'greeting' is another than recorded:", '+*"socket 3: greet"', "*nox -s record"]
    )


def test_same_structure_is_left_alone(watched: pytest.Pytester):
    """Recording twice does not change the file; another structure does."""
    path = spans.timeline_path(watched.path, "greeting")
    run(watched, "--record")
    first = path.read_text()
    run(watched, "--record")
    assert path.read_text() == first
    change(watched, "(1, 2)", "(1, 2, 3)")
    run(watched, "--record")
    assert path.read_text() != first


def test_missing_timeline_fails(watched: pytest.Pytester):
    """Without a recording the test fails and names the file and the remedy."""
    result = run(watched)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*greeting.timeline.json is missing); run: nox -s record"])


def test_stale_timeline_fails(watched: pytest.Pytester):
    """A timeline of another source fails, though the structure is the same."""
    run(watched, "--record")
    change(watched, "print", "print  ", "examples/greeting.py")
    result = run(watched)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["timeline 'greeting' is older than its example; *"])


def test_timeline_of_a_failed_test_is_not_recorded(watched: pytest.Pytester):
    """What was watched before the test failed is nothing to show."""
    change(watched, "timeline)\n", "timeline)\n    assert False\n")
    run(watched, "--record").assert_outcomes(failed=1)
    assert spans.names(watched.path) == []


def test_example_must_exist(watched: pytest.Pytester):
    """A timeline without an example has nothing to be older than."""
    (watched.path / "examples/greeting.py").unlink()
    result = run(watched)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["no example for timeline 'greeting': examples/greeting.py *"])
