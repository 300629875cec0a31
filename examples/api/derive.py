import asyncio
import time

from django.conf import settings

from ormbridge import DatabaseSyncToAsync

settings.configure()


class Timed(DatabaseSyncToAsync):  # <--
    async def __call__(self, *args, **kwargs):
        started = time.monotonic()
        try:
            return await super().__call__(*args, **kwargs)
        finally:
            print(f"{self.func.__name__}: {time.monotonic() - started:.2f} s, waiting included")


@Timed
def report():
    time.sleep(0.1)  # what a query of 100 ms does to its thread


if __name__ == "__main__":
    asyncio.run(report())
