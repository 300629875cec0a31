from django.contrib.auth.models import User
from django.test import TestCase

from ormbridge import atomic, database_sync_to_async


class SignUpTest(TestCase):
    @classmethod
    def setUpTestData(cls):
        User.objects.create(username="ada")

    async def test_one(self):
        async with atomic():
            await User.objects.acreate(username="grace")
        self.assertEqual(await database_sync_to_async(User.objects.count)(), 2)

    async def test_two(self):
        self.assertEqual(await User.objects.acount(), 1)
