"""A short load; ``python -m tests.servers.load`` puts on a long one."""

from tests.servers.conftest import BOUND
from tests.servers.harness import Server
from tests.servers.load import load


async def test_never_more_than_the_bound_and_none_in_the_end(database):
    """Clients that leave, views that raise: never more than MAX_THREADS, then no connection."""
    settings = {"MAX_THREADS": BOUND, "MAX_IDLE": 1}
    with Server("uvicorn-uvloop", database, bridge=True, **settings) as server:
        report = await load(server, seconds=5, clients=100)
    assert report.errors == {}, server.output()
    assert report.most == BOUND
    assert report.samples > 1
    # Each of the kinds of things that clients do was done.
    assert set(report.done) == {
        "client left a request",
        "client left a socket",
        "request answered",
        "socket served",
        "stream raised: cut",
        "stream read",
        "view raised: 500",
    }
