"""Makes the database slow, and counts what goes on. Your own project needs none of it.

Both sides are counted with the same measure, from outside: an ASGI application around the consumer
sees messages come and answers go, and a wrapper around each statement sees when and where it runs.
A client of the page sends a message when it has the answer to the one before, so it has one state.
"""

import threading
import time
from contextvars import ContextVar
from dataclasses import dataclass

from django.db.backends.signals import connection_created
from django.dispatch import receiver

#: Seconds that each statement takes on top, as on the way to a database server.
LATENCY = 0.02


@dataclass(eq=False)
class Client:
    """One WebSocket, and whether a message of it is waiting for its query."""

    side: "Side"
    waiting: bool = False


# asgiref and the bridge take context variables along to their threads.
client_here: ContextVar[Client] = ContextVar("client_here")


class Side:
    """The clients of one side, and the connections opened for them, each with its thread."""

    def __init__(self):
        self.clients = set()
        self.opened = []

    def count(self, application):
        """Return *application* so that this side counts its clients."""

        async def counted(scope, receive, send):
            client = Client(self)

            async def counted_receive():
                message = await receive()
                client.waiting = message["type"] == "websocket.receive"
                return message

            client_here.set(client)
            self.clients.add(client)
            try:
                await application(scope, counted_receive, send)
            finally:
                self.clients.remove(client)

        return counted

    def now(self):
        """Return the state of this side."""
        opened = self.opened.copy()
        return {
            "threads": len({thread for thread, _ in opened if thread.is_alive()}),
            "connections": sum(each.connection is not None for _, each in opened),
            "waiting": sum(client.waiting for client in self.clients),
        }


PLAIN, BRIDGE = Side(), Side()


@receiver(connection_created)
def note_connection(connection, **kwargs):
    """Note on whose behalf *connection* was opened, and make it slow."""
    client = client_here.get(None)
    if client is not None and slow not in connection.execute_wrappers:
        connection.execute_wrappers.append(slow)
        client.side.opened.append((threading.current_thread(), connection))


def slow(execute, sql, params, many, context):
    """Run a statement as a database would that is further away."""
    client_here.get().waiting = False
    time.sleep(LATENCY)
    return execute(sql, params, many, context)
