import asyncio
import threading

from django.conf import settings

from ormbridge import database_sync_to_async, stats

settings.configure()

report_is_running = threading.Event()
report_may_end = threading.Event()


@database_sync_to_async
def write_report():
    report_is_running.set()
    report_may_end.wait(timeout=30)


async def main():
    report = asyncio.create_task(write_report())
    await asyncio.to_thread(report_is_running.wait, 30)
    for thread, what, seconds in stats().holders:  # <--
        print(f"{thread} runs {what} for {seconds:.3f} s")
    print([thread.name for thread in threading.enumerate() if "ormbridge" in thread.name])
    report_may_end.set()
    await report


if __name__ == "__main__":
    asyncio.run(main())
