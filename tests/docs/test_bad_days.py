"""What is measured of a bad day: the proxy that breaks, and what is said of the requests."""

import contextlib
import json
import socket
import threading
from pathlib import Path

import pytest

from tests.bench import bad_days
from tests.bench.programs import Program
from tests.bench.rows import OURS
from tests.core.gate import GUARD

ROOT = Path(__file__).parents[2]


@pytest.fixture
def proxy():
    """Return a proxy of a server that says everything back, and what connects to it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(connection):
        with contextlib.suppress(OSError):
            while said := connection.recv(100):
                connection.sendall(said)
        connection.close()

    def serve():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=echo, args=listener.accept()[:1], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    server = "127.0.0.1", str(listener.getsockname()[1])
    with (
        Program("-m", "tests.bench.proxy", *server, "1") as program,
        contextlib.ExitStack() as stack,
    ):
        port = int(program.answer(GUARD))

        def connect():
            client = socket.create_connection(("127.0.0.1", port), timeout=GUARD)
            stack.enter_context(client)
            return client, heard(client, b"hello")

        yield lambda line: program.ask(line, bound=GUARD), connect
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def heard(client, said):
    """Say something, and return the answer; nothing, if the connection is closed."""
    try:
        client.sendall(said)
        return client.recv(100)
    except ConnectionError:
        return b""


def test_proxy_counts_connections(proxy):
    """It tells how many there have been and how many at once, each time anew."""
    tell, connect = proxy
    connect()
    connect()
    assert tell("seen") == "2 2"
    assert tell("seen") == "0 2"


def test_proxy_that_cuts(proxy):
    """All connections are closed, and the next one is taken."""
    tell, connect = proxy
    client, answer = connect()
    assert answer == b"hello"
    tell("cut")
    assert heard(client, b"more") == b""
    assert connect()[1] == b"hello"


def test_proxy_that_is_away(proxy):
    """All connections are closed, and new ones refused until it is back."""
    tell, connect = proxy
    client, _ = connect()
    tell("away")
    assert heard(client, b"more") == b""
    with pytest.raises(ConnectionRefusedError):
        connect()
    tell("back")
    assert connect()[1] == b"hello"


def test_proxy_that_holds(proxy):
    """Nothing is passed on until it goes on, and nothing is lost."""
    tell, connect = proxy
    client, _ = connect()
    tell("hold")
    client.sendall(b"more")
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(100)
    client.settimeout(GUARD)
    tell("go")
    assert client.recv(100) == b"more"


ANSWERED = [(0, n / 100, 200) for n in range(1, 101)]
EVERYTHING = {"columns": set(bad_days.COLUMNS)}


def made(*requests):
    return {"requests": [*ANSWERED, *requests], "late": 250, "running": 3, "idle": 0.75}


def test_figures_of_a_turn():
    """Answers, refusals and failures are counted apart, and the last failure is timed."""
    requests = [(3, 4, 503), (3, 5.5, 500), (3, 4, 499)]
    figures = bad_days.figures(EVERYTHING, made(*requests), [[3, 5], [4, 2]], mended=5)
    assert figures == {
        "answered": 100,
        "slowest": pytest.approx(1, abs=0.02),
        "left": 1,
        "refused": 1,
        "failed": 1,
        "opened": 7,
        "most": 5,
        "mended": 0.5,
        "running": 3,
        "idle": 0.75,
        "late": 250,
    }


def test_day_without_a_failure_after_its_end():
    """Where no request fails after the end, the last failure came no later."""
    assert bad_days.figures(EVERYTHING, made((0, 4, 500)), [[0, 1]], mended=5)["mended"] == 0


def test_day_has_its_own_columns():
    """A day shows the figures that count that day, in the order of all of them."""
    day = {"columns": {"late", "answered"}}
    assert [*bad_days.figures(day, made(), [[0, 1]], mended=5)] == ["answered", "late"]


def test_published_tables_are_those_of_the_figures():
    """All days are published, and each table says what was measured."""
    report = json.loads((ROOT / bad_days.RESULTS).read_text(encoding="utf-8"))
    assert report["days"].keys() == bad_days.DAYS.keys() == report["sentences"].keys() - {"how"}
    for name, day in report["days"].items():
        assert report["shown"][name] == bad_days.table(day["contestants"])
        assert [row[0] for row in report["shown"][name]["rows"]] == bad_days.CONTESTANTS
        assert day["contestants"][OURS].get("most", 0) <= report["connections"]
