"""A TCP proxy that holds back what the server says, as a network would, and that can break.

`python -m tests.bench.proxy HOST PORT MILLISECONDS` prints the port it listens on and serves until
its standard input ends. Requests pass at once. An answer is passed on MILLISECONDS after its first
byte came. One plain thread waits for each direction of each connection: `time.sleep` is exact to
some 0.1 ms, where the timers of an event loop round to whole milliseconds.

It does what each line of its standard input says, and then prints how many connections there have
been, and how many at once, since the line before:

* `hold` passes on nothing, in either direction, until `go`;
* `cut` closes all connections;
* `away` does so, and takes no new ones until `back`.
"""

import contextlib
import socket
import sys
import threading
import time

CHUNK = 1 << 16


class Proxy:
    """Connections to the server at *address*, whose answers come *delay* seconds late."""

    def __init__(self, address, delay):
        self.address, self.delay = address, delay
        self.lock, self.flows = threading.Lock(), threading.Event()
        self.open, self.opened, self.most = set(), 0, 0
        self.flows.set()
        self.listen(0)

    def listen(self, port):
        """Take connections at *port*, or at one that is free."""
        self.listener = socket.create_server(("127.0.0.1", port), backlog=1000)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, args=(self.listener,), daemon=True).start()

    def serve(self, listener):
        """Join each connection to a new one to the server, until *listener* is shut."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self.address)
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self.lock:
                    self.open.add(client)
                    self.opened += 1
                    self.most = max(self.most, len(self.open))
                for source, target, delay in ((client, server, 0), (server, client, self.delay)):
                    pump = threading.Thread(target=self.pump, args=(source, target, delay, client))
                    pump.daemon = True
                    pump.start()

    def pump(self, source, target, delay, client):
        """Pass on what *source* says until it stops talking."""
        with contextlib.suppress(OSError):
            while source.recv(1, socket.MSG_PEEK) if delay else True:
                if delay:
                    time.sleep(delay)  # what arrives meanwhile is part of the same answer
                data = source.recv(CHUNK)
                self.flows.wait()
                if not data:
                    break
                target.sendall(data)
        shut(source, target)
        with self.lock:
            self.open.discard(client)

    def cut(self):
        """Close all connections; each of its two threads then ends the other half."""
        with self.lock:
            shut(*self.open)

    def away(self):
        """Close all connections, and take no new ones."""
        shut(self.listener)
        self.listener.close()
        self.cut()

    def back(self):
        """Take connections again."""
        self.listen(self.port)

    def seen(self):
        """Return how many connections there have been, and at once, since this was asked."""
        with self.lock:
            seen = self.opened, self.most
            self.opened, self.most = 0, len(self.open)
        return seen


def shut(*sockets):
    """Shut each of *sockets* down, for both directions."""
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def main(host, port, milliseconds):
    """Serve, and do what standard input says."""
    proxy = Proxy((host, int(port)), float(milliseconds) / 1000)
    print(proxy.port, flush=True)
    actions = {"hold": proxy.flows.clear, "go": proxy.flows.set, "seen": lambda: None}
    actions |= {"cut": proxy.cut, "away": proxy.away, "back": proxy.back}
    for line in sys.stdin:
        actions[line.strip()]()
        print(*proxy.seen(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
