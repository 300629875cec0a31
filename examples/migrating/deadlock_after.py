import asyncio

from django.conf import settings

from ormbridge import database_sync_to_async  # <--

settings.configure()


def get_name():
    return "ada"


def get_greeting():
    return f"Hello, {asyncio.run(database_sync_to_async(get_name)())}"


async def main():
    try:
        print(await database_sync_to_async(get_greeting)())
    except RuntimeError as error:
        print(f"RuntimeError: {error}")


if __name__ == "__main__":
    asyncio.run(main())
