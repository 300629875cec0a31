"""The page ``howto/lazy-relations``: relations that query when they are read."""

import pytest
from django.contrib.auth.models import Group, Permission, User
from django.core.exceptions import SynchronousOnlyOperation

from tests.howto.conftest import outcome

pytestmark = pytest.mark.django_db(transaction=True)


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


async def test_loaded(staff, load_example, recorded):
    """What was loaded with the rows may be read in a coroutine."""
    module = load_example("lazy_relations/loaded")
    lines = [
        await outcome(module.along_a_foreign_key),
        await outcome(module.along_a_many_to_many_relation),
        await outcome(module.afterwards, [await User.objects.aget()]),
        await outcome(module.on_a_worker, "ada"),
    ]
    recorded("lazy_relations/loaded", "\n".join(lines))
