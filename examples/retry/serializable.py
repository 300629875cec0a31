import asyncio
import functools
import random

from django.contrib.auth.models import User
from django.db import OperationalError

from ormbridge import atomic

MAY_BE_REPEATED = {"40001", "40P01"}  # serialization failure, deadlock


def repeated(function, attempts=5):
    @functools.wraps(function)
    async def attempt(*args, **kwargs):
        left = attempts
        while True:
            left -= 1
            try:
                async with atomic(durable=True):  # a new transaction each time  # <--
                    return await function(*args, **kwargs)
            except OperationalError as error:
                cause = error.__cause__
                code = getattr(cause, "sqlstate", None)
                code = code or getattr(cause, "pgcode", None)  # of psycopg2
                if not left or code not in MAY_BE_REPEATED:
                    raise
            await asyncio.sleep(random.uniform(0, 0.1))

    return attempt


@repeated
async def sign_up(username):
    is_first = not await User.objects.aexists()
    await User.objects.acreate(username=username, is_superuser=is_first)
