import asyncio
import threading

from django.conf import settings

from ormbridge import PoolTimeout, database_sync_to_async

settings.configure(ORMBRIDGE={"MAX_THREADS": 10})


@database_sync_to_async
def get_name():
    return "ada"


async def main():
    # No system has so much memory for the stack of a thread, and so it starts none.
    threading.stack_size(2**46)
    try:
        print(await get_name())  # <--
    except PoolTimeout as error:
        print(f"PoolTimeout: {error}")
    threading.stack_size(0)  # the usual size again
    print(await get_name())


if __name__ == "__main__":
    asyncio.run(main())
