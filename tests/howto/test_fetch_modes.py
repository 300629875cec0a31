"""The page ``howto/fetch-modes``: what a lazy field does, from Django 6.1 on."""

import django
import pytest
from django.contrib.auth.models import Permission
from django.core.exceptions import SynchronousOnlyOperation

from ormbridge.testing import assert_num_queries
from tests.howto.conftest import outcome

pytestmark = pytest.mark.django_db(transaction=True)

if django.VERSION >= (6, 1):
    from django.db.models import FETCH_PEERS

    async def test_strict(load_example, recorded):
        """In a coroutine a lazy field raises; with FETCH_RAISE it raises everywhere."""
        module = load_example("fetch_modes/strict")
        lines = [await outcome(each) for each in (module.lazy, module.strict)]
        recorded("fetch_modes/strict", "\n".join(lines))

    async def test_peers_are_one_query(load_example, recorded):
        """With FETCH_PEERS, a loop over lazy foreign keys makes two queries in all."""
        module = load_example("fetch_modes/peers")
        async with assert_num_queries(2):
            found = await module.kinds()
        recorded("fetch_modes/peers", str(found))

    async def test_peers_are_refused():
        """In a coroutine FETCH_PEERS queries as well, and so raises."""
        permission = await Permission.objects.fetch_mode(FETCH_PEERS).afirst()
        with pytest.raises(SynchronousOnlyOperation):
            permission.content_type  # noqa: B018 - it queries
