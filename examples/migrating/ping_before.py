import asyncio
import threading

from asgiref.testing import ApplicationCommunicator
from channels.consumer import AsyncConsumer, SyncConsumer
from channels.exceptions import StopConsumer
from channels.routing import URLRouter
from django.conf import settings
from django.urls import path

settings.configure()

report_is_running = threading.Event()
report_may_end = threading.Event()


class ReportConsumer(SyncConsumer):
    def websocket_connect(self, event):
        report_is_running.set()
        report_may_end.wait(timeout=1)  # a slow query, at most 1 s
        print("report")
        raise StopConsumer


class PingConsumer(AsyncConsumer):
    async def websocket_connect(self, event):
        print("ping")
        report_may_end.set()
        raise StopConsumer


application = URLRouter(
    [path("report/", ReportConsumer.as_asgi()), path("ping/", PingConsumer.as_asgi())]
)


async def visit(path):
    socket = ApplicationCommunicator(application, {"type": "websocket", "path": path})
    await socket.send_input({"type": "websocket.connect"})
    await socket.wait(timeout=30)


async def main():
    report = asyncio.create_task(visit("/report/"))
    await asyncio.to_thread(report_is_running.wait, 30)
    await visit("/ping/")
    await report


if __name__ == "__main__":
    asyncio.run(main())
