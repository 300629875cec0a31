import http.client
import json
import re
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.core.gate import GUARD
from tests.demo.conftest import ROOT, Demo

StartDemo = Callable[..., Demo]
BOUND = 10
SECONDS = 4


@dataclass
class Visit:
    """A page of the demo, and what the browser saw while it was open."""

    demo: Demo
    page: Page
    addresses: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    snapshots: list[dict] = field(default_factory=list)

    def begin(self, query: str = "") -> None:
        """Open the page and wait until it can be used."""
        self.page.on("request", lambda request: self.addresses.append(request.url))
        self.page.on("websocket", self.watch)
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.goto(self.demo.url + query)
        self.wait_for("ready")

    def watch(self, opened: WebSocket) -> None:
        """Note a WebSocket, and what comes in on that of the figures."""
        self.addresses.append(opened.url)
        if opened.url.endswith("/ws/stats/"):
            opened.on("framereceived", lambda frame: self.snapshots.append(json.loads(frame)))

    def press(self) -> None:
        """Press the button."""
        self.page.get_by_role("button", name="50 clients").click()

    def wait_for(self, *states: str) -> None:
        """Wait until the page is in one of *states*."""
        self.page.wait_for_selector(
            ", ".join(f"body[data-state={state}]" for state in states), timeout=GUARD * 1000
        )

    def wait_for_answers(self, side: str) -> None:
        """Wait until *side* runs and the first calls are answered."""
        figure = self.page.locator(f"[data-side={side}][data-row=answers]")
        figure.filter(has_text=re.compile("[1-9]")).wait_for(timeout=GUARD * 1000)

    def message(self) -> str:
        """Return what the page says."""
        return self.page.get_by_role("status").inner_text()

    def figure(self, side: str, row: str) -> int:
        """Return a figure of the table."""
        text = self.page.locator(f"[data-side={side}][data-row={row}]").inner_text()
        return int(re.fullmatch(r"([\d,]+)(?: ms)?", text)[1].replace(",", ""))

    def highest(self, side: str, name: str) -> int:
        """Return the highest of a figure in what the server sent."""
        return max(snapshot[side][name] for snapshot in self.snapshots)


@pytest.fixture
def visit(start_demo: StartDemo, browser: Browser) -> Visit:
    """Open the page of a demo of its own, with short runs."""
    visit = Visit(start_demo(), browser.new_page())
    visit.begin("?seconds=1")
    return visit


@pytest.fixture(scope="module")
def demo(start_demo: StartDemo) -> Demo:
    """Start a demo that tests share which leave it as it is."""
    return start_demo()


@pytest.fixture(scope="module")
def finished(demo: Demo, browser: Browser) -> Visit:
    """Open the page, press the button and wait until both sides have finished."""
    visit = Visit(demo, browser.new_page())
    visit.begin()
    visit.press()
    visit.wait_for("done", "failed")
    return visit


def test_says_what_came_of_it(finished: Visit):
    """The last message holds the totals of both sides."""
    plain, bridge = (f"{finished.figure(side, 'answers'):,}" for side in ("plain", "bridge"))
    start = f"{plain} answers in {SECONDS} s without the bridge, {bridge} with it: "
    assert finished.message().startswith(start)


@pytest.mark.parametrize("side", ["plain", "bridge"])
def test_both_sides_have_figures(finished: Visit, side: str):
    """Calls were answered, calls waited, and the rate is that of the whole run."""
    answers = finished.figure(side, "answers")
    assert answers > 0
    assert finished.figure(side, "rate") == pytest.approx(answers / SECONDS, abs=0.5)
    assert finished.figure(side, "median") > 0
    assert 0 < finished.figure(side, "waiting") <= 50


def test_channels_alone_has_one_thread(finished: Visit):
    """Whatever the number of clients, there is one thread and one connection."""
    for name in ("threads", "connections"):
        assert 1 == finished.figure("plain", name) == finished.highest("plain", name)


def test_bridge_never_passes_its_bound(finished: Visit):
    """It takes all the threads that it may have, by its own count and by the demo's."""
    for name in ("threads", "connections"):
        assert BOUND == finished.figure("bridge", name) == finished.highest("bridge", name)
    assert BOUND == finished.highest("pool", "threads") == finished.highest("pool", "max_threads")


def test_chart_has_a_line_for_each_side(finished: Visit):
    """Each line has points, all of them inside the chart, and the chart says what it shows."""
    chart = finished.page.get_by_role("img")
    for side in ("plain", "bridge"):
        points = chart.locator(f"polyline.{side}").get_attribute("points").split()
        assert len(points) > 1
        for point in points:
            assert all(0 <= float(place) <= 100 for place in point.split(","))
    assert finished.message() in chart.get_attribute("aria-label")


def test_nothing_leaves_the_server(finished: Visit):
    """The page asks nobody else for anything, and opens two times fifty sockets and one."""
    served = finished.page.url.removeprefix("http://").rstrip("/")
    addresses = [urlsplit(each) for each in finished.addresses if not each.startswith("data:")]
    assert {served} == {each.netloc for each in addresses}
    assert ["/", "/ws/stats/"] == [each.path for each in addresses[:2]]
    assert 50 * ["/ws/plain/"] + 50 * ["/ws/bridge/"] == [each.path for each in addresses[2:]]


def test_console_stays_empty(finished: Visit):
    """The browser has nothing to complain about."""
    assert finished.messages == []


@pytest.mark.parametrize("width", [390, 320])
def test_fits_a_phone(finished: Visit, width: int):
    """Nothing has to be scrolled sideways, the code opened or not."""
    finished.page.set_viewport_size({"width": width, "height": 844})
    for _ in range(2):
        assert width == finished.page.evaluate("document.documentElement.scrollWidth")
        finished.page.get_by_text("The consumer of both sides").click()


def test_dark_where_the_reader_wants_it(finished: Visit):
    """The colours follow the system."""
    seen = {}
    for scheme in ("light", "dark"):
        finished.page.emulate_media(color_scheme=scheme)
        seen[scheme] = finished.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"} == seen


def test_shows_the_consumer_that_runs(finished: Visit):
    """The code on the page is that of the server."""
    shown = finished.page.locator("pre").text_content()
    assert shown in (ROOT / "examples/demo/consumers.py").read_text()
    assert "User.objects.all()[0].username" in shown


def test_can_be_pressed_again(visit: Visit):
    """A second run wipes the figures and the lines of the first, and ends like it."""
    visit.press()
    visit.wait_for("done", "failed")
    # In one step: the next figures come soon.
    left = visit.page.evaluate(
        """() => {
            document.querySelector("button").click();
            const lines = [...document.querySelectorAll("polyline")];
            const cells = [...document.querySelectorAll("tbody td")];
            return [lines.map((each) => each.getAttribute("points")),
                    cells.map((each) => each.textContent)];
        }"""
    )
    assert [2 * [""], 12 * ["\N{EN DASH}"]] == left
    visit.wait_for("done", "failed")
    assert visit.message().endswith(f"on {BOUND} threads.")


def test_page_that_is_closed_leaves_no_trace(visit: Visit):
    """Clients that go away in the middle of their calls are no error, and the next page works."""
    visit.press()
    visit.wait_for_answers("bridge")
    visit.page.close()
    again = Visit(visit.demo, visit.page.context.browser.new_page())
    again.begin()
    assert (0, "", []) == visit.demo.end()


@pytest.mark.parametrize("side", ["plain", "bridge"])
def test_ctrl_c_in_the_middle(visit: Visit, side: str):
    """The server ends at once and in peace, and the page says so."""
    visit.press()
    visit.wait_for_answers(side)
    assert (0, "", []) == visit.demo.end()
    visit.page.get_by_text("The server has stopped.").wait_for(timeout=GUARD * 1000)
    visit.wait_for("failed")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_it_and_its_database(start_demo: StartDemo, number: int):
    """The temporary directory is gone, and nothing is complained about."""
    demo = start_demo()
    assert ["demo.sqlite3"] == [path.name for path in demo.place.glob("*/*")]
    assert (0, "", []) == demo.end(number)


def test_port_that_is_taken(start_demo: StartDemo):
    """Another port is taken, and the person at the terminal learns of it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        demo = start_demo("--port", str(port))
    assert demo.port != port
    assert f"Port {port} cannot be used" in demo.output
    assert f"taking {demo.port} instead" in demo.output


def test_port_that_is_free(start_demo: StartDemo):
    """The port that was asked for is used."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    demo = start_demo("--port", str(port))
    assert f"The demo runs at http://127.0.0.1:{port}/\nCtrl-C ends it.\n" == demo.output


def test_opens_its_page(start_demo: StartDemo, tmp_path: Path):
    """The browser of the person at the terminal is given the address."""
    with socket.create_server(("127.0.0.1", 0)) as told:
        told.settimeout(GUARD)
        script = tmp_path / "browser.py"
        script.write_text(
            "import socket, sys\n"
            f"with socket.create_connection({told.getsockname()}) as told:\n"
            "    told.sendall(sys.argv[1].encode())\n"
        )
        demo = start_demo(browser=f"{sys.executable} {script} %s")
        with told.accept()[0] as browser:
            assert demo.url == browser.makefile().read()


def test_reached_from_this_machine_alone(demo: Demo):
    """It listens on no other address than 127.0.0.1."""
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", demo.port), GUARD)


def test_other_names_are_refused(demo: Demo):
    """A name that somebody else points at this machine is of no use."""
    client = http.client.HTTPConnection("127.0.0.1", demo.port, timeout=GUARD)
    client.request("GET", "/", headers={"Host": "elsewhere.example"})
    assert client.getresponse().status == 400
    client.close()


@pytest.mark.parametrize("path", ["plain", "bridge", "stats"])
def test_pages_of_others_open_no_sockets(demo: Demo, path: str):
    """A page from elsewhere can neither watch the demo nor make it work."""
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{demo.port}/ws/{path}/", origin="http://elsewhere.example")
