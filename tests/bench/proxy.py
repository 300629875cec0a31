"""A TCP proxy that holds back what the server says, as a network would.

`python -m tests.bench.proxy HOST PORT MILLISECONDS` prints the port it listens on and serves until
its standard input ends. Requests pass at once. An answer is passed on MILLISECONDS after its first
byte came. One plain thread waits for each direction of each connection: `time.sleep` is exact to
some 0.1 ms, where the timers of an event loop round to whole milliseconds.
"""

import contextlib
import socket
import sys
import threading
import time

CHUNK = 1 << 16


def pump(source, target, delay):
    """Pass on what `source` says until it stops talking."""
    with contextlib.suppress(OSError):
        while source.recv(1, socket.MSG_PEEK) if delay else True:
            if delay:
                time.sleep(delay)  # what arrives meanwhile is part of the same answer
            data = source.recv(CHUNK)
            if not data:
                break
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def serve(listener, address, delay):
    """Accept connections for ever, and join each to a new one to the server."""
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(address)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=pump, args=(client, server, 0), daemon=True).start()
        threading.Thread(target=pump, args=(server, client, delay), daemon=True).start()


if __name__ == "__main__":
    host, port, milliseconds = sys.argv[1:]
    listening = socket.create_server(("127.0.0.1", 0), backlog=100)
    print(listening.getsockname()[1], flush=True)
    arguments = (listening, (host, int(port)), float(milliseconds) / 1000)
    threading.Thread(target=serve, args=arguments, daemon=True).start()
    sys.stdin.read()
