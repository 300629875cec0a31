import asyncio
import threading

from django.conf import settings

from ormbridge import database_sync_to_async

settings.configure(ORMBRIDGE={"MAX_THREADS": 3})

all_three_are_running = threading.Barrier(3)


@database_sync_to_async
def get_thread_name():
    all_three_are_running.wait(timeout=30)
    return threading.current_thread().name


async def main():
    names = await asyncio.gather(*[get_thread_name() for _ in range(6)])
    for name in sorted(set(names)):
        print(name, names.count(name))


if __name__ == "__main__":
    asyncio.run(main())
