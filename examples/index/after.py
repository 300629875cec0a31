import asyncio
import time

from django.conf import settings

from ormbridge import database_sync_to_async  # <--

settings.configure()


@database_sync_to_async
def query():
    time.sleep(0.05)  # what a query of 50 ms does to its thread


async def main():
    start = time.perf_counter()
    await asyncio.gather(*[query() for _ in range(20)])
    print(f"20 calls took {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    asyncio.run(main())
