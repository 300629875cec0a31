"""The page ``howto/fastapi-dependencies``: when a dependency's transaction commits."""

from typing import Annotated

import fastapi
import httpx
import pytest
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from fastapi import Depends

from ormbridge import BridgeMiddleware, atomic

pytestmark = pytest.mark.django_db(transaction=True)


def client(application):
    """Return a client of *application*, without a server between them."""
    transport = httpx.ASGITransport(application, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


@pytest.mark.parametrize("scope", ["request", "function"])
async def test_when_a_dependency_commits(scope):
    """Without ``scope="function"`` the client has its answer before the transaction commits."""
    seen = []

    async def transaction():
        async with atomic():
            yield
        seen.append("committed")

    api = fastapi.FastAPI()

    @api.get("/")
    async def endpoint(_: Annotated[None, Depends(transaction, scope=scope)]):
        await User.objects.acreate(username="ada")

    await ask(BridgeMiddleware(api), seen)
    late = ["answered", "committed"]
    assert seen == (late if scope == "request" else late[::-1])


async def ask(application, seen):
    """Ask for ``/``, and add to *seen* when the answer is there."""

    async def receive():
        return {"type": "http.request", "body": b""}

    async def send(message):
        if message["type"] == "http.response.body" and not message.get("more_body"):
            seen.append("answered")

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
    await application({**scope, "server": ("localhost", 80)}, receive, send)


@pytest.mark.parametrize("above", [True, False])
async def test_router_below_django_is_not_found(load_example, settings, above):
    """Django, mounted at ``/``, has what comes after it; so a router is included before."""
    settings.ROOT_URLCONF = ()
    module = load_example("fastapi_dependencies/transaction")
    api = fastapi.FastAPI()
    if above:
        api.include_router(module.router)
    api.mount("/", get_asgi_application())
    if not above:
        api.include_router(module.router)
    async with client(BridgeMiddleware(api)) as browser:
        answer = await browser.post("/api/users/ada")
    assert answer.status_code == (201 if above else 404)


async def test_dependency(load_example, recorded):
    """The endpoint's writes are committed by the time of the answer, or rolled back."""
    module = load_example("fastapi_dependencies/transaction")
    api = fastapi.FastAPI()
    api.include_router(module.router)

    @api.post("/api/fail/{username}")
    async def fail(username: str, _: module.InTransaction):
        await User.objects.acreate(username=username)
        raise ZeroDivisionError

    async with client(BridgeMiddleware(api)) as browser:
        answers = [await browser.post(f"/api/{each}") for each in ("users/ada", "fail/bob")]
    names = [user.username async for user in User.objects.all()]
    assert [each.status_code for each in answers] == [201, 500]
    assert names == ["ada"]
    recorded("fastapi_dependencies/transaction", f"POST /api/users/ada: {answers[0].status_code}")
