import asyncio
import threading

from asgiref.sync import ThreadSensitiveContext
from asgiref.testing import ApplicationCommunicator
from channels.consumer import SyncConsumer
from channels.exceptions import StopConsumer
from django.conf import settings

settings.configure()

threads = set()


class Consumer(SyncConsumer):
    async def __call__(self, scope, receive, send):
        async with ThreadSensitiveContext():  # <--
            await super().__call__(scope, receive, send)

    def websocket_connect(self, event):
        threads.add(threading.current_thread())
        self.send({"type": "websocket.accept"})

    def websocket_disconnect(self, event):
        raise StopConsumer


application = Consumer.as_asgi()


async def connect():
    socket = ApplicationCommunicator(application, {"type": "websocket", "path": "/"})
    await socket.send_input({"type": "websocket.connect"})
    await socket.receive_output(timeout=30)
    return socket


async def main():
    sockets = [await connect() for _ in range(100)]
    alive = [thread for thread in threads if thread.is_alive()]
    print(f"{len(sockets)} open sockets hold {len(alive)} threads")
    for socket in sockets:
        await socket.send_input({"type": "websocket.disconnect", "code": 1000})
        await socket.wait(timeout=30)


if __name__ == "__main__":
    asyncio.run(main())
