#!/usr/bin/env bash
# Under uvicorn no atexit function runs after SIGTERM.
#
# Versions: uvicorn 0.54.0 (Python 3.13, Linux).
# Needs:    Python 3.11+ (set PYTHON to choose one).
# Expected: after SIGTERM uvicorn shuts down in order (requests, then lifespan) and the interpreter
#           ends as ever, with what atexit holds.
# Happens:  uvicorn ends the lifespan, puts the former handler back and raises the signal once more:
#           the process dies of it there and then, with status 143. Nothing after the lifespan runs:
#           no atexit, no "finally" around the server's run().
# Hurt:     libraries that end by atexit (pools that close their connections, exporters of traces
#           and metrics, logging.shutdown): each deployment loses their last batch. Close in the
#           lifespan's shutdown.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet uvicorn==0.54.0
cd "$work"

cat >program.py <<'EOF'
import atexit
import os
import signal
import sys

import uvicorn


async def app(scope, receive, send):
    """Ask the process to end once it is up, as a deployment does."""
    while (message := await receive())["type"] != "lifespan.shutdown":
        await send({"type": f"{message['type']}.complete"})
        if sys.argv[1] == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            server.should_exit = True
    print("lifespan: shutdown", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


atexit.register(print, "atexit: ran", flush=True)
server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="on", log_level="error"))
try:
    server.run()
finally:
    print("finally: ran", flush=True)
EOF

cat >expected <<'EOF'
-- should_exit
lifespan: shutdown
finally: ran
atexit: ran
status 0
-- SIGTERM
lifespan: shutdown
status 143
EOF

for way in should_exit SIGTERM; do
    echo "-- $way"
    status=0
    venv/bin/python program.py $way || status=$?
    echo "status $status"
done | tee seen
diff expected seen
