from asgiref.sync import async_to_sync
from channels.db import database_sync_to_async  # <--
from django.contrib.auth.models import User

count_users = database_sync_to_async(User.objects.count)


def test_count(db):
    User.objects.create(username="ada")
    assert async_to_sync(count_users)() == 1
