"""The page ``howto/lazy-relations``: relations that query when they are read."""

import django
import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import SynchronousOnlyOperation

from ormbridge.testing import assert_num_queries

pytestmark = pytest.mark.django_db(transaction=True)


async def outcome(function, *args):
    """Return what *function* returns or raises, in a line."""
    try:
        found = await function(*args)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    return f"{function.__name__}: {found}"


@pytest.fixture
def staff(ada):
    """Put ada into a group."""
    ada.groups.add(Group.objects.create(name="staff"))
    return ada


async def test_lazy_foreign_key_is_refused():
    """A foreign key that was not loaded raises in a coroutine."""
    permission = await Permission.objects.afirst()
    with pytest.raises(SynchronousOnlyOperation):
        permission.content_type  # noqa: B018 - it queries


async def test_related_manager(staff):
    """A related manager has async methods, and ``async for``."""
    assert [group.name async for group in staff.groups.all()] == ["staff"]
    assert await staff.groups.acount() == 1


async def test_id_of_a_foreign_key():
    """The id of the other object needs no query."""
    permission = await Permission.objects.select_related("content_type").afirst()
    lazy = await Permission.objects.aget(pk=permission.pk)
    assert lazy.content_type_id == permission.content_type.pk


if django.VERSION >= (6, 1):
    from django.db.models import FETCH_PEERS

    async def test_refused(load_example, recorded):
        """In a coroutine a lazy field raises; with FETCH_RAISE it raises everywhere."""
        module = load_example("lazy_relations/refused")
        lines = [await outcome(each) for each in (module.lazy, module.strict)]
        recorded("lazy_relations/refused", "\n".join(lines))

    async def test_loaded(staff, load_example, recorded):
        """What was loaded with the rows may be read in a coroutine."""
        module = load_example("lazy_relations/loaded")
        lines = [
            await outcome(module.along_a_foreign_key),
            await outcome(module.along_a_many_to_many_relation),
            await outcome(module.afterwards, [await User.objects.aget()]),
            await outcome(module.on_a_worker),
        ]
        recorded("lazy_relations/loaded", "\n".join(lines))

    async def test_peers_are_one_query(load_example):
        """With FETCH_PEERS, a loop over lazy foreign keys makes two queries in all."""
        module = load_example("lazy_relations/loaded")
        async with assert_num_queries(2):
            await module.on_a_worker()

    async def test_peers_are_refused():
        """In a coroutine FETCH_PEERS queries as well, and so raises."""
        permission = await Permission.objects.fetch_mode(FETCH_PEERS).afirst()
        with pytest.raises(SynchronousOnlyOperation):
            permission.content_type  # noqa: B018 - it queries
