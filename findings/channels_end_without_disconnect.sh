#!/usr/bin/env bash
# Under uvicorn, Channels does not call disconnect() of a consumer whose client left too early.
#
# Versions: Channels 4.3.2, uvicorn 0.54.0, Daphne 4.2.3, Hypercorn 0.18.0, websockets 17.4.
# Needs:    Python 3.11+ (set PYTHON to choose one).
# Expected: disconnect() is called once for each socket that connect() accepted: that is where
#           consumers count who has gone, leave their groups and give back what they hold.
# Happens:  it is, where the client leaves while nothing is sent, and under Daphne and Hypercorn,
#           which drop what is sent to a client that has gone. uvicorn raises in send(), as ASGI says
#           that a server should. The error ends the consumer before the message of the disconnect is
#           dispatched: what connect() did stays done.
# Hurt:     who writes in connect() what disconnect() is to delete: rows of who is online, seats,
#           counters and locks stay. It never shows on a developer's machine, where an answer takes no
#           time, nor under runserver, which is Daphne. Write the time into such rows and let old ones
#           lapse, or catch OSError where the consumer sends.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet \
    channels==4.3.2 uvicorn==0.54.0 daphne==4.2.3 hypercorn==0.18.0 websockets==17.4
cd "$work"

cat >asgi_site.py <<'EOF'
import asyncio

from django.conf import settings

settings.configure(SECRET_KEY="for this only")

from channels.generic.websocket import AsyncWebsocketConsumer


def note(what):
    with open("notes", "a") as notes:
        notes.write(what + "\n")


class Consumer(AsyncWebsocketConsumer):
    async def connect(self):
        note("connect")
        await self.accept()

    async def receive(self, text_data=None, bytes_data=None):
        await self.send("wait")
        await asyncio.sleep(1)  # a query, a model, another service: the client leaves meanwhile
        try:
            await self.send("the answer")
        except Exception:
            note("send raised")
            raise

    async def disconnect(self, code):
        note("disconnect")


consumer = Consumer.as_asgi()


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        try:
            await consumer(scope, receive, send)
        finally:
            note("over")
EOF

cat >program.py <<'EOF'
import asyncio
import pathlib
import socket
import subprocess
import sys

import websockets

notes = pathlib.Path("notes")


async def until(done):
    async with asyncio.timeout(30):
        while not done():
            await asyncio.sleep(0.02)


async def visit(port, says):
    notes.write_text("")
    for _ in range(200):  # the server starts
        try:
            client = await websockets.connect(f"ws://127.0.0.1:{port}/")
            break
        except OSError:
            await asyncio.sleep(0.05)
    if says:
        await client.send("a question")
        await client.recv()
    client.transport.abort()  # as a phone that loses its network
    await until(lambda: "over" in notes.read_text())
    return ", ".join(notes.read_text().split("\n")[:-1])


servers = {
    "uvicorn": ["--lifespan", "off", "--port", "{}"],
    "daphne": ["-p", "{}"],
    "hypercorn": ["-b", "127.0.0.1:{}"],
}
for name, options in servers.items():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", name, *(x.format(port) for x in options), "asgi_site:app"]
    with open(f"{name}.log", "w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for says in (False, True):
            when = "before it has its answer" if says else "while nothing is sent"
            print(f"{name}, the client leaves {when}: {asyncio.run(visit(port, says))}")
    finally:
        server.kill()
        server.wait()
EOF

cat >expected <<'EOF'
uvicorn, the client leaves while nothing is sent: connect, disconnect, over
uvicorn, the client leaves before it has its answer: connect, send raised, over
daphne, the client leaves while nothing is sent: connect, disconnect, over
daphne, the client leaves before it has its answer: connect, disconnect, over
hypercorn, the client leaves while nothing is sent: connect, disconnect, over
hypercorn, the client leaves before it has its answer: connect, disconnect, over
EOF

venv/bin/python program.py | tee seen
diff expected seen
