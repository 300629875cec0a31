"""Start the demo as a process of its own, and look at its page with a browser."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.core.gate import GUARD

ROOT = Path(__file__).parents[2]


class Demo:
    """A running demo, started with *arguments*; *place* is its directory for temporary files.

    It opens its page with the command *browser*, if there is one.
    """

    def __init__(self, place: Path, *arguments: str, browser: str = "") -> None:
        self.place = place
        self.errors = place.with_suffix(".stderr")
        environment = {**os.environ, "TMPDIR": str(place), "BROWSER": browser}
        environment.pop("ASGI_THREADS", None)  # the bound is that of the demo's settings
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "examples.demo", *arguments),
                    *([] if browser else ["--no-browser"]),
                ],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.output = ""
        while "Ctrl-C" not in self.output:
            line = self.process.stdout.readline()
            assert line, f"the demo ended at once:\n{self.errors.read_text()}"
            self.output += line
        self.url = re.search(r"http://\S+", self.output)[0]
        self.port = int(re.search(r":(\d+)/", self.url)[1])

    def end(self, number: int = signal.SIGINT) -> tuple[int, str, list[Path]]:
        """Send a signal; return the exit status, what was complained about, and what was left."""
        self.process.send_signal(number)
        status = self.process.wait(GUARD)
        return status, self.errors.read_text(), list(self.place.iterdir())


@pytest.fixture(scope="module")
def start_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Demo]]:
    """Return a function that starts a demo, on a free port unless *arguments* name one."""
    started = []

    def start(*arguments: str, browser: str = "") -> Demo:
        place = tmp_path_factory.mktemp("demo")
        demo = Demo(place, *(arguments or ("--port", "0")), browser=browser)
        started.append(demo)
        return demo

    yield start
    for demo in started:
        with demo.process, suppress(ProcessLookupError):
            demo.process.kill()


def chromium() -> dict[str, Any]:
    """Return the options that start the browser that the machine has."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.fail(
            f"these tests need a browser, and none of {', '.join(names)} is on the path; "
            "install one: apt-get install chromium",
            pytrace=False,
        )
    # Only pages of the tests are opened, so the sandbox, which root does not get, is not missed.
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    return {"executable_path": found, "args": quiet}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start that browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**chromium())
        yield browser
        browser.close()
