import asyncio
import os
import threading

from channels.db import database_sync_to_async
from django.conf import settings

settings.configure()

all_calls_are_made = threading.Event()


@database_sync_to_async
def get_thread():
    all_calls_are_made.wait(timeout=30)
    return threading.get_ident()


async def main():
    calls = [asyncio.create_task(get_thread()) for _ in range(20)]
    await asyncio.sleep(0)  # the tasks make their calls
    all_calls_are_made.set()
    threads = set(await asyncio.gather(*calls))
    print(f"ASGI_THREADS={os.environ['ASGI_THREADS']}, and 20 calls use {len(threads)} thread")


if __name__ == "__main__":
    asyncio.run(main())
