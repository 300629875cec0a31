"""The page ``howto/rest``: endpoints of django-ninja, adrf and Django REST framework."""

import asyncio
import gc
import warnings

import httpx
import pytest
from django.contrib.auth.models import Group, User
from django.core.asgi import get_asgi_application
from django.core.exceptions import SynchronousOnlyOperation
from django.urls import path
from ninja import ModelSchema, NinjaAPI
from rest_framework.response import Response
from rest_framework.views import APIView

from ormbridge import BridgeMiddleware

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
async def browse(settings):
    """Return a function that serves URLs and returns a client of them."""
    settings.ALLOWED_HOSTS = ["localhost"]
    settings.MIDDLEWARE = []
    settings.REST_FRAMEWORK = {
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "DEFAULT_AUTHENTICATION_CLASSES": [],
    }
    clients = []

    def open_client(urls):
        settings.ROOT_URLCONF = tuple(urls)
        transport = httpx.ASGITransport(
            BridgeMiddleware(get_asgi_application()), raise_app_exceptions=False
        )
        clients.append(httpx.AsyncClient(transport=transport, base_url="http://localhost"))
        return clients[-1]

    yield open_client
    for client in clients:
        await client.aclose()


def said(answer):
    return f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}"


# django-ninja.


async def test_ninja(browse, load_example, recorded):
    """Async operations of django-ninja, with a transaction."""
    client = browse(load_example("rest/ninja_api").urlpatterns)
    lines = [said(await client.post("/api/users/ada")), said(await client.get("/api/users"))]
    recorded("rest/ninja_api", "\n".join(lines))


async def test_operation_that_fails(browse, load_example):
    """An operation's block leaves nothing behind if it fails."""
    await Group.objects.acreate(name="team of ada")  # that name is taken
    client = browse(load_example("rest/ninja_api").urlpatterns)
    assert (await client.post("/api/users/ada")).status_code == 500
    assert not await User.objects.aexists()


async def test_is_valid_is_refused(load_example):
    """A serializer that checks whether a name is taken queries, and a coroutine may not."""
    module = load_example("rest/adrf_views")
    with pytest.raises(SynchronousOnlyOperation):
        module.UserSerializer(data={"username": "ada"}).is_valid()


async def test_queryset_of_an_async_operation(browse, caplog):
    """A queryset that an async operation returns is refused."""
    api = NinjaAPI(urls_namespace="queryset")

    class UserOut(ModelSchema):
        class Meta:
            model = User
            fields = ("username",)

    @api.get("/users", response=list[UserOut])
    async def users(request):
        return User.objects.all()

    client = browse([path("api/", api.urls)])
    assert (await client.get("/api/users")).status_code == 500
    assert "You cannot call this from an async context" in caplog.text


# Django REST framework.


async def test_adrf(browse, load_example, recorded):
    """Async views and serializers of adrf, with a transaction."""
    client = browse(load_example("rest/adrf_views").urlpatterns)
    lines = [
        said(await client.post("/api/users/", json={"username": "ada"})),
        said(await client.post("/api/users/", json={"username": "ada"})),
        said(await client.get("/api/users/")),
    ]
    recorded("rest/adrf_views", "\n".join(lines))


class Plain(APIView):
    """A view as anybody has it."""

    gate = None

    def get(self, request):
        return Response({"users": User.objects.count(), "thread": self.gate()})


async def test_views_of_rest_framework(browse, gate):
    """Synchronous views of Django REST framework run on workers, two requests at once."""
    client = browse([path("", Plain.as_view(gate=gate))])
    asked = [asyncio.create_task(client.get("/")) for _ in range(2)]
    await gate.entered(2)
    gate.open.set()
    threads = {answer.json()["thread"] for answer in await asyncio.gather(*asked)}
    assert threads == {"ormbridge-worker-1", "ormbridge-worker-2"}


class Async(APIView):
    """An async method in a view of Django REST framework's own."""

    async def get(self, request):
        return Response()


def test_async_method_of_rest_framework(rf):
    """Django REST framework itself awaits nothing: an ``async def get`` is an error there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that it was never awaited
        with pytest.raises(AssertionError, match="coroutine"):
            Async().dispatch(rf.get("/"))
        gc.collect()
