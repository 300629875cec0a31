"""Where the parts listen, and their configuration with the names of compose.yaml put in place."""

import random
import re
import socket
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).absolute().parents[1]
HOST = "127.0.0.1"
# The names and ports of compose.yaml, which nginx.conf and pgbouncer.ini have, too.
PORTS = {"postgresql": 15432, "pgbouncer": 16432, "redis": 16379, "app": 18000, "nginx": 18080}
# Below those that the system gives to connections that are opened: on Linux they begin at 32768.
# Of these it might take one between the look and the start of who is to listen there.
FREE = range(20000, 32768)


def free_port():
    """Return a port that nobody has."""
    while True:
        port = random.choice(FREE)
        with suppress(OSError), socket.create_server((HOST, port)):
            return port


def free_ports():
    """Return a port that nobody has for each part."""
    ports = set()
    while len(ports) < len(PORTS):
        ports.add(free_port())
    return dict(zip(PORTS, ports, strict=True))


def taken(ports):
    """Return the *ports* on which something listens already."""
    found = []
    for name, port in ports.items():
        try:
            socket.create_server((HOST, port)).close()
        except OSError:
            found.append(f"{port} ({name})")
    return found


def configuration(name, ports):
    """Return the file *name* as it is, but for hosts and ports: all of them on this machine."""
    text = (HERE / name).read_text(encoding="utf-8")
    text = text.replace("listen_addr = *", f"listen_addr = {HOST}")
    text = re.sub(r"host=\w+", f"host={HOST}", text)
    text = text.replace("server app:", f"server {HOST}:")
    text = re.sub(r"\blisten (?=\d)", f"listen {HOST}:", text)
    for part, port in PORTS.items():
        text = text.replace(str(port), str(ports[part]))
    return text
