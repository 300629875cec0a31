from django.contrib.auth.models import User
from django.test import TransactionTestCase

from ormbridge import database_sync_to_async


class ReportTest(TransactionTestCase):
    async def test_count(self):
        count = database_sync_to_async(User.objects.count, thread_sensitive=False)
        self.assertEqual(await count(), 0)
