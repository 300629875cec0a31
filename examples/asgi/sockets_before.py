import asyncio
import time

from asgiref.testing import ApplicationCommunicator
from channels.consumer import SyncConsumer
from channels.exceptions import StopConsumer
from django.conf import settings


def query():
    time.sleep(0.05)  # what a query of 50 ms does to its thread


class GreetingConsumer(SyncConsumer):
    def websocket_connect(self, event):
        query()
        self.send({"type": "websocket.accept"})

    def websocket_disconnect(self, event):
        raise StopConsumer


application = GreetingConsumer.as_asgi()


async def visit():
    socket = ApplicationCommunicator(application, {"type": "websocket", "path": "/"})
    await socket.send_input({"type": "websocket.connect"})
    await socket.receive_output(timeout=30)
    await socket.send_input({"type": "websocket.disconnect", "code": 1000})
    await socket.wait(timeout=30)


async def main():
    start = time.perf_counter()
    await asyncio.gather(*[visit() for _ in range(20)])
    print(f"20 sockets took {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    settings.configure()
    asyncio.run(main())
