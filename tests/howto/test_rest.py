"""The page ``howto/rest``: views of Django REST framework and of adrf."""

import asyncio
import gc
import warnings

import pytest
from django.contrib.auth.models import User
from django.core.exceptions import SynchronousOnlyOperation
from django.urls import path
from rest_framework.response import Response
from rest_framework.views import APIView

from tests.howto.conftest import said

pytestmark = pytest.mark.django_db(transaction=True)


async def test_is_valid_is_refused(load_example):
    """A serializer that checks whether a name is taken queries, and a coroutine may not."""
    module = load_example("rest/views")
    with pytest.raises(SynchronousOnlyOperation):
        module.UserSerializer(data={"username": "ada"}).is_valid()


async def test_adrf(browse, load_example, recorded):
    """Async views and serializers of adrf, with a transaction."""
    client = browse(load_example("rest/views").urlpatterns)
    lines = [
        said(await client.post("/api/users/", json={"username": "ada"})),
        said(await client.post("/api/users/", json={"username": "ada"})),
        said(await client.get("/api/users/")),
    ]
    recorded("rest/views", "\n".join(lines))


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
