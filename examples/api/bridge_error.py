import asyncio
import threading

from django.conf import settings

from ormbridge import BridgeError, database_sync_to_async

settings.configure(ORMBRIDGE={"MAX_THREADS": 1, "TIMEOUT": 0.1})

may_end = threading.Event()


@database_sync_to_async
def report():
    may_end.wait(timeout=30)


async def ask():
    try:
        await report()
    except BridgeError as error:  # <--
        print(f"not now: {type(error).__name__}")
        may_end.set()


async def main():
    await asyncio.gather(ask(), ask())  # there is one worker


if __name__ == "__main__":
    asyncio.run(main())
