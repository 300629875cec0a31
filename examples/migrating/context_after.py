import asyncio

from asgiref.testing import ApplicationCommunicator
from channels.consumer import SyncConsumer
from channels.exceptions import StopConsumer
from django.conf import settings

from ormbridge import BridgeMiddleware, stats

settings.configure(ORMBRIDGE={"MAX_THREADS": 1})


class Consumer(SyncConsumer):
    def websocket_connect(self, event):
        self.send({"type": "websocket.accept"})

    def websocket_disconnect(self, event):
        raise StopConsumer


application = BridgeMiddleware(Consumer.as_asgi())  # <--


async def connect():
    socket = ApplicationCommunicator(application, {"type": "websocket", "path": "/"})
    await socket.send_input({"type": "websocket.connect"})
    await socket.receive_output(timeout=30)
    return socket


async def main():
    sockets = [await connect() for _ in range(100)]
    print(f"{len(sockets)} open sockets share {stats().threads} thread")
    for socket in sockets:
        await socket.send_input({"type": "websocket.disconnect", "code": 1000})
        await socket.wait(timeout=30)


if __name__ == "__main__":
    asyncio.run(main())
