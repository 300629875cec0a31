import asyncio

from django.contrib.auth.models import User


def report():
    return asyncio.run(count_users())  # <--


async def count_users():
    return await User.objects.acount()


def test_report(db):
    User.objects.create(username="ada")
    assert report() == 1
