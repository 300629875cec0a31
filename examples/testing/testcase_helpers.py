from django.contrib.auth.models import User
from django.db import transaction
from django.test import TestCase

from ormbridge import atomic, database_sync_to_async
from ormbridge.testing import assert_num_queries, capture_on_commit_callbacks


async def sign_up(name, welcome):
    async with atomic():
        await User.objects.acreate(username=name)
        await database_sync_to_async(transaction.on_commit)(lambda: welcome(name))


class SignUpTest(TestCase):
    async def test_queries(self):
        async with assert_num_queries(3):  # <--
            await sign_up("ada", print)

    async def test_welcome(self):
        welcomed = []
        async with capture_on_commit_callbacks(execute=True) as callbacks:  # <--
            await sign_up("ada", welcomed.append)
        self.assertEqual(len(callbacks), 1)
        self.assertEqual(welcomed, ["ada"])
