import asyncio
import atexit

from django.conf import settings

from ormbridge import PoolClosed, database_sync_to_async

settings.configure()


@database_sync_to_async
def save(event):
    print(f"saved: {event}")


@atexit.register
def at_exit():
    try:
        asyncio.run(save("stop"))  # <--
    except PoolClosed as error:
        print(f"PoolClosed: {error}")


if __name__ == "__main__":
    asyncio.run(save("start"))
