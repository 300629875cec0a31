"""A network that a test can stall: a proxy in front of the database server."""

import select
import socket
import threading

import pytest
from django.db import connections


class Network(threading.Thread):
    """Forwards to *server*, an address, what comes to ``port``, until it stalls.

    A stalled connection stays open, and nothing arrives at either end.
    """

    def __init__(self, server):
        super().__init__(daemon=True)
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._woken, self._wake = socket.socketpair()
        self._lock = threading.Lock()
        # Guarded by _lock: the other end of each connection, and those that are silent.
        self._others = {}
        self._silent = set()
        self._all_silent = self._closed = False
        self.start()

    def stall(self, new_ones=True):
        """Forward nothing more on the connections that are open, nor, with *new_ones*, on others.

        What was sent before this returns may still arrive.
        """
        with self._lock:
            self._silent |= set(self._others)
            self._all_silent = new_ones
        self._wake.send(b"!")

    def go_on(self):
        """Forward again, on every connection."""
        with self._lock:
            self._silent.clear()
            self._all_silent = False
            for each in [each for each, other in self._others.items() if other is None]:
                self._connect(each)
        self._wake.send(b"!")

    def close(self):
        """Break every connection, and take no more."""
        self._closed = True
        self._wake.send(b"!")
        self.join()
        for each in [*self._others, self._listening, self._woken, self._wake]:
            each.close()

    def _connect(self, client):
        other = socket.create_connection(self._server)
        self._others |= {client: other, other: client}

    def run(self):
        while not self._closed:
            with self._lock:
                ends = [each for each in self._others if each not in self._silent]
            for ready in select.select([self._woken, self._listening, *ends], [], [])[0]:
                if ready is self._woken:
                    self._woken.recv(1)
                    continue
                with self._lock:
                    if ready is self._listening:
                        self._accept()
                    elif ready in self._others and ready not in self._silent:
                        self._forward(ready)

    def _accept(self):
        client = self._listening.accept()[0]
        if self._all_silent:
            self._others[client] = None
            self._silent.add(client)
        else:
            self._connect(client)

    def _forward(self, source):
        target = self._others[source]
        try:
            data = source.recv(65536)
            target.sendall(data)
        except OSError:
            data = b""
        if not data:
            for each in (source, target):
                del self._others[each]
                each.close()


@pytest.fixture
def network(transactional_db, pool_settings):
    """Have one worker, and put a network that can stall between it and the server."""
    pool_settings(MAX_THREADS=1)
    server = connections.settings["default"]
    network = Network((server["HOST"], int(server["PORT"])))
    with pytest.MonkeyPatch.context() as patch:
        for alias in ("default", "other"):
            patch.setitem(connections.settings[alias], "PORT", str(network.port))
        yield network
    network.close()
    connections.close_all()
