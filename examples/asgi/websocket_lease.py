import asyncio
import threading

from asgiref.testing import ApplicationCommunicator
from channels.consumer import SyncConsumer
from channels.exceptions import StopConsumer
from django.conf import settings

from ormbridge import BridgeMiddleware, PoolTimeout

settings.configure(
    ORMBRIDGE={"WEBSOCKET_LEASE": "connection", "MAX_THREADS": 2, "TIMEOUT": 0.5},  # <--
)


class NameConsumer(SyncConsumer):
    def websocket_connect(self, event):
        self.send({"type": "websocket.accept"})

    def websocket_receive(self, event):
        self.send({"type": "websocket.send", "text": threading.current_thread().name})

    def websocket_disconnect(self, event):
        raise StopConsumer


application = BridgeMiddleware(NameConsumer.as_asgi())


async def begin():
    socket = ApplicationCommunicator(application, {"type": "websocket", "path": "/names/"})
    await socket.send_input({"type": "websocket.connect"})
    return socket


async def connect():
    socket = await begin()
    await socket.receive_output(timeout=30)
    return socket


async def ask(socket):
    await socket.send_input({"type": "websocket.receive", "text": ""})
    return (await socket.receive_output(timeout=30))["text"]


async def disconnect(socket):
    await socket.send_input({"type": "websocket.disconnect", "code": 1000})
    await socket.wait(timeout=30)


async def main():
    first, second = await connect(), await connect()
    for _ in range(2):
        print(f"first: {await ask(first)}, second: {await ask(second)}")
    third = await begin()
    try:
        await third.wait(timeout=30)
    except PoolTimeout as error:  # <--
        print(f"third: PoolTimeout: {error}")
    await disconnect(first)
    third = await connect()
    print(f"third: {await ask(third)}")
    await disconnect(second)
    await disconnect(third)


if __name__ == "__main__":
    asyncio.run(main())
