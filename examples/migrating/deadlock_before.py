import asyncio

from asgiref.sync import sync_to_async
from django.conf import settings

settings.configure()


def get_name():
    return "ada"


def get_greeting():
    return f"Hello, {asyncio.run(sync_to_async(get_name)())}"


async def main():
    try:
        print(await sync_to_async(get_greeting)())
    except RuntimeError as error:
        print(f"RuntimeError: {error}")


if __name__ == "__main__":
    asyncio.run(main())
