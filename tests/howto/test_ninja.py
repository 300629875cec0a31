"""The page ``howto/ninja``: async operations of django-ninja."""

import pytest
from django.contrib.auth.models import Group, User
from django.urls import path
from ninja import ModelSchema, NinjaAPI
from ninja.pagination import paginate

from tests.howto.conftest import said

pytestmark = pytest.mark.django_db(transaction=True)


class UserOut(ModelSchema):
    """What an operation says of a user."""

    class Meta:
        """Of the model, the name."""

        model = User
        fields = ("username",)


async def test_ninja(browse, load_example, recorded):
    """Async operations of django-ninja, with a transaction."""
    client = browse(load_example("ninja/api").urlpatterns)
    lines = [said(await client.post("/api/users/ada")), said(await client.get("/api/users"))]
    recorded("ninja/api", "\n".join(lines))


async def test_operation_that_fails(browse, load_example):
    """An operation's block leaves nothing behind if it fails."""
    await Group.objects.acreate(name="team of ada")  # that name is taken
    client = browse(load_example("ninja/api").urlpatterns)
    assert (await client.post("/api/users/ada")).status_code == 500
    assert not await User.objects.aexists()


async def test_queryset_of_an_async_operation(browse, caplog):
    """A queryset that an async operation returns is refused."""
    api = NinjaAPI(urls_namespace="queryset")

    @api.get("/users", response=list[UserOut])
    async def users(request):
        return User.objects.all()

    client = browse([path("api/", api.urls)])
    assert (await client.get("/api/users")).status_code == 500
    assert "You cannot call this from an async context" in caplog.text


async def test_paginated_queryset(browse):
    """A queryset is no error where the operation is paginated."""
    await User.objects.acreate(username="ada")
    api = NinjaAPI(urls_namespace="paginated")

    @api.get("/users", response=list[UserOut])
    @paginate
    async def users(request):
        return User.objects.order_by("pk")

    answer = await browse([path("api/", api.urls)]).get("/api/users")
    assert answer.json() == {"items": [{"username": "ada"}], "count": 1}
