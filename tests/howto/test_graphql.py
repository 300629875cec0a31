"""The page ``howto/graphql``: a schema of Strawberry's, asked over HTTP."""

import asyncio
import json
import sys
import types

import httpx
import pytest
import strawberry
import strawberry_django
from django.contrib.auth.models import Group, User
from django.core.asgi import get_asgi_application
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from strawberry.django.views import AsyncGraphQLView

from ormbridge import BridgeMiddleware, database_sync_to_async
from ormbridge.testing import assert_num_queries

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def urls(load_example, monkeypatch):
    """Return the URLconf of the example; Strawberry looks its module up by its name."""
    monkeypatch.setitem(sys.modules, "schema", types.ModuleType("schema"))
    return load_example("graphql/schema").urlpatterns


@pytest.fixture
def ask(settings):
    """Return a function that serves a URLconf or a schema, and asks it."""
    settings.ALLOWED_HOSTS = ["localhost"]
    settings.MIDDLEWARE = []

    async def ask(served, query):
        if isinstance(served, strawberry.Schema):
            served = [path("graphql/", AsyncGraphQLView.as_view(schema=served))]
        settings.ROOT_URLCONF = tuple(served)
        transport = httpx.ASGITransport(BridgeMiddleware(get_asgi_application()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.post("/graphql/", json={"query": query})
        assert answer.status_code == 200
        return answer.json()

    return ask


async def test_schema(urls, ask, recorded):
    """A mutation in a transaction, and a query with what is related."""
    answers = [
        await ask(urls, 'mutation { signUp(username: "ada") { username } }'),
        await ask(urls, "{ users { username groups { name } } numberOfUsers }"),
    ]
    recorded("graphql/schema", "\n".join(json.dumps(each["data"]) for each in answers))


async def test_mutation_that_fails(urls, ask):
    """A mutation that fails leaves nothing behind."""
    await Group.objects.acreate(name="team of ada")  # that name is taken
    answer = await ask(urls, 'mutation { signUp(username: "ada") { username } }')
    assert answer["errors"]
    assert not await User.objects.aexists()


async def test_related_rows_are_one_query(urls, ask):
    """The optimizer loads the groups of all users at once."""
    for name in ("ada", "bob", "eve"):
        user = await User.objects.acreate(username=name)
        await user.groups.aadd(await Group.objects.acreate(name=f"team of {name}"))
    async with assert_num_queries(2):
        await ask(urls, "{ users { username groups { name } } }")


@strawberry.type
class Users:
    """The same resolver under two decorators."""

    @strawberry.field
    def plain(self) -> int:
        return User.objects.count()

    @strawberry_django.field
    def right(self) -> int:
        return User.objects.count()


async def test_resolver_that_is_refused(ask):
    """A plain resolver that queries is refused, and the status is 200 all the same."""
    answer = await ask(strawberry.Schema(query=Users), "{ plain }")
    (error,) = answer["errors"]
    assert error["message"].startswith("You cannot call this from an async context")


async def test_resolver_of_strawberry_django(ask):
    """The same resolver under ``strawberry_django.field`` is run on the request's worker."""
    assert await ask(strawberry.Schema(query=Users), "{ right }") == {"data": {"right": 0}}


@pytest.mark.parametrize("lease", ["request", "call"])
async def test_fields_of_a_query(ask, gate, pool_settings, lease):
    """The fields of a query take turns on the request's worker, unless each call has its own."""
    pool_settings(HTTP_LEASE=lease)

    @strawberry.type
    class Query:
        @strawberry.field
        async def place(self) -> str:
            return await database_sync_to_async(gate)()

    asked = asyncio.create_task(ask(strawberry.Schema(query=Query), "{ a: place b: place }"))
    await gate.entered(2 if lease == "call" else 1)
    gate.open.set()
    data = (await asked)["data"]
    assert (data["a"] == data["b"]) is (lease == "request")


async def test_client_without_a_token(urls, settings):
    """Django's middleware refuses a client without a token, unless the view is exempt."""
    settings.ROOT_URLCONF = (*urls, path("exempt/", csrf_exempt(urls[0].callback)))
    settings.MIDDLEWARE = ["django.middleware.csrf.CsrfViewMiddleware"]
    settings.ALLOWED_HOSTS = ["localhost"]
    transport = httpx.ASGITransport(BridgeMiddleware(get_asgi_application()))
    query = {"query": "{ numberOfUsers }"}
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answers = [await client.post(where, json=query) for where in ("/graphql/", "/exempt/")]
    assert [each.status_code for each in answers] == [403, 200]
