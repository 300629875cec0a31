import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test.utils import CaptureQueriesContext

pytestmark = pytest.mark.asyncio


async def test_fixture_of_pytest_django(async_db, django_assert_num_queries):
    with django_assert_num_queries(2):
        await User.objects.acreate(username="ada")
        assert await User.objects.acount() == 1


async def test_class_of_django(async_db):
    with CaptureQueriesContext(connection) as queries:
        await User.objects.acount()
    assert len(queries) == 1
