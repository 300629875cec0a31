"""Run a piece of Python in a process of its own."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.gate import GUARD

ROOT = Path(__file__).parent.parent


def run_python(source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run *source* with the project on its path, and with *environment* on top of the own one."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * GUARD,
    )
