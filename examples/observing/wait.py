import asyncio
import time

from django.conf import settings

from ormbridge import database_sync_to_async, stats

settings.configure(ORMBRIDGE={"MAX_THREADS": 2})


@database_sync_to_async
def query():
    time.sleep(0.2)  # what a query of 200 ms does to its thread


async def main():
    await asyncio.gather(*[query() for _ in range(6)])
    pool = stats()
    print(f"{pool.calls} calls, {pool.queued} of them waited")
    print(f"a call waits {pool.wait_seconds / pool.calls:.3f} s on average")
    print(f"a call runs {pool.run_seconds / pool.calls:.3f} s on average")


if __name__ == "__main__":
    asyncio.run(main())
