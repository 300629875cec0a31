import asyncio
import threading

import django
from asgiref.testing import ApplicationCommunicator
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path

from ormbridge import BridgeMiddleware

settings.configure(
    ORMBRIDGE={"MAX_THREADS": 1, "TIMEOUT": 0.5},
    ROOT_URLCONF="__main__",
)
django.setup()

report_is_running = threading.Event()
report_may_end = threading.Event()


def report(request):
    report_is_running.set()
    report_may_end.wait(timeout=30)
    return HttpResponse("the report")


def greeting(request):
    return HttpResponse("Hello, ada")


urlpatterns = [path("report/", report), path("greeting/", greeting)]
application = BridgeMiddleware(get_asgi_application())


async def get(path):
    client = ApplicationCommunicator(
        application, {"type": "http", "method": "GET", "path": path, "headers": []}
    )
    await client.send_input({"type": "http.request"})
    start = await client.receive_output(timeout=30)
    await client.wait(timeout=30)
    print(path, start["status"])


async def main():
    slow = asyncio.create_task(get("/report/"))
    await asyncio.to_thread(report_is_running.wait, 30)  # it has the only worker
    await get("/greeting/")
    report_may_end.set()
    await slow


if __name__ == "__main__":
    asyncio.run(main())
