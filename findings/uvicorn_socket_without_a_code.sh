#!/usr/bin/env bash
# uvicorn ends a WebSocket whose application raises without a close frame.
#
# Versions: uvicorn 0.54.0, Hypercorn 0.18.0, Daphne 4.2.3, websockets 17.4 (Python 3.13, Linux).
# Needs:    Python 3.11+ (set PYTHON to choose one).
# Expected: RFC 6455 has 1011 for "a server met an unexpected condition", and so every ASGI server
#           closes the socket of an application that raised with it.
# Happens:  Hypercorn and Daphne do. uvicorn closes the TCP connection: no close frame, no code.
#           Browsers show that as 1006, as they show a network that broke. Its log has the error.
# Hurt:     whoever reads the code of a closed socket: clients that connect again after 1006, since
#           "the network broke", ask the same failing question for ever, and those who look for the
#           fault look at proxies and timeouts. Catch errors in the consumer, and close with 1011.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet \
    uvicorn==0.54.0 hypercorn==0.18.0 daphne==4.2.3 websockets==17.4
cd "$work"

cat >asgi_site.py <<'EOF'
async def app(scope, receive, send):
    """Accept a socket, and raise at its first message."""
    if scope["type"] != "websocket":
        return
    await receive()
    await send({"type": "websocket.accept"})
    await receive()
    raise LookupError("of the application")
EOF

cat >program.py <<'EOF'
import asyncio
import socket
import subprocess
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

SERVERS = {
    "daphne": "daphne -b 127.0.0.1 -p {port} asgi_site:app",
    "hypercorn": "hypercorn --bind 127.0.0.1:{port} asgi_site:app",
    "uvicorn": "uvicorn --host 127.0.0.1 --port {port} asgi_site:app",
}


async def code(port):
    """Return the code in the close frame of a socket that sends a message, or what there is."""
    while True:
        try:
            async with connect(f"ws://127.0.0.1:{port}/") as client:
                await client.send("a message")
                await client.recv()
        except ConnectionRefusedError:  # the server is not up yet
            await asyncio.sleep(0.1)
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else "no close frame"


for name, command in SERVERS.items():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = command.format(port=port).split()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", *command], **quiet)
    try:
        print(f"{name}: {asyncio.run(asyncio.wait_for(code(port), 60))}")
    finally:
        server.terminate()
        server.wait()
EOF

cat >expected <<'EOF'
daphne: 1011
hypercorn: 1011
uvicorn: no close frame
EOF

venv/bin/python program.py | tee seen
diff expected seen
