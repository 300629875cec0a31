import asyncio
import threading

from django.conf import settings

from ormbridge import PoolTimeout, database_sync_to_async

settings.configure(ORMBRIDGE={"MAX_THREADS": 1, "TIMEOUT": 0.5})

report_may_end = threading.Event()


@database_sync_to_async
def write_report():
    report_may_end.wait()


@database_sync_to_async
def get_name():
    return "ada"


async def main():
    report = asyncio.create_task(write_report())
    await asyncio.sleep(0)  # the report takes the only worker
    try:
        await get_name()  # <--
    except PoolTimeout as error:
        print(f"PoolTimeout: {error}")
    report_may_end.set()
    await report


if __name__ == "__main__":
    asyncio.run(main())
