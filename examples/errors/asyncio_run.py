import asyncio

from django.conf import settings

from ormbridge import PoolTimeout, database_sync_to_async

settings.configure(ORMBRIDGE={"MAX_THREADS": 1})


@database_sync_to_async
def get_name():
    return "ada"


@database_sync_to_async
def get_greeting():
    return f"Hello, {asyncio.run(get_name())}"  # <--


async def main():
    try:
        print(await get_greeting())
    except PoolTimeout as error:
        print(f"PoolTimeout: {error}")


if __name__ == "__main__":
    asyncio.run(main())
