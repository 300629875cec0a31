"""What a number of sockets needs, by the figures of one process: the budget of guide/scaling."""

import math

THREADS = 10
EVERY = 60
"""Seconds between two messages of a socket."""
ROOM = 87
"""Connections for the site: of 100, the default, without 3 reserved ones and 10 for others."""


def budget(sockets, one):
    """Return what *sockets* need, by the figures of *one* process."""
    messages = sockets / EVERY
    processes = math.ceil(messages / (one["messages"] / 2))  # half of what it can do at the most
    # The old and the new processes, while you deploy.
    connections = 2 * processes * THREADS
    return {
        "messages": math.ceil(messages),
        "processes": processes,
        "each": math.ceil(sockets / processes),
        "mib": math.ceil(sockets * one["kib"] / 1024 + processes * one["process_mib"]),
        "nginx_mib": math.ceil(sockets * one["nginx_kib"] / 1024),
        "connections": connections,
        "fits": "that fits" if connections <= ROOM else "put PgBouncer in between",
    }
