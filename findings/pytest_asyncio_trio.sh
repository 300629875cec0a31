#!/usr/bin/env bash
# A test "on trio" is green though it ran on asyncio, and though trio is not installed.
#
# Versions: pytest 9.2.0, pytest-asyncio 1.5.0, anyio 4.16.0.
# Needs:    Python 3.11+ (set PYTHON to choose one).
# Expected: a test marked anyio, with an anyio_backend fixture of "asyncio" and "trio", runs once on
#           each; without trio the second one fails.
# Happens:  in pytest-asyncio's auto mode that plugin takes every coroutine test before anyio does.
#           The parameter still stands in the test's name, "[trio]" passes, on an asyncio loop.
#           In strict mode it fails, as it should.
# Hurt:     authors of libraries for both loops who add asyncio_mode = auto for other tests: from
#           then on nothing is tested on trio, and the report says it is.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet pytest==9.2.0 pytest-asyncio==1.5.0 anyio==4.16.0
cd "$work"

cat >test_loop.py <<'EOF'
import asyncio

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.mark.anyio
async def test_loop(anyio_backend):
    asyncio.get_running_loop()  # Raises on trio.
EOF

cat >expected <<'EOF'
trio can be imported: False
-- strict
test_loop.py::test_loop[asyncio] PASSED
test_loop.py::test_loop[trio] FAILED
-- auto
test_loop.py::test_loop[asyncio] PASSED
test_loop.py::test_loop[trio] PASSED
EOF

{
    venv/bin/python -c 'import importlib.util as u; print("trio can be imported:", u.find_spec("trio") is not None)'
    for mode in strict auto; do
        echo "-- $mode"
        # The exit status is 1 where a test fails; the lines below tell which.
        venv/bin/python -m pytest -v -o asyncio_mode=$mode -o asyncio_default_fixture_loop_scope=function \
            -o console_output_style=classic test_loop.py >report || true
        grep -oE '^test_loop.py::\S+ [A-Z]+' report
    done
} | tee seen
diff expected seen
