"""What the tests of ``howto/`` share: the fixtures of the guide, and a client."""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.test import Client

from ormbridge import BridgeMiddleware
from tests.guide.conftest import ada, load_example, run_example, run_script

__all__ = ["ada", "load_example", "run_example", "run_script"]


@pytest.fixture
async def browse(settings: Any) -> AsyncIterator[Callable[..., httpx.AsyncClient]]:
    """Return a function that serves URLs and returns a client of them."""
    settings.ALLOWED_HOSTS = ["localhost"]
    settings.MIDDLEWARE = []
    settings.REST_FRAMEWORK = {
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        "DEFAULT_AUTHENTICATION_CLASSES": [],
    }
    clients: list[httpx.AsyncClient] = []

    def open_client(urls: Iterable[Any]) -> httpx.AsyncClient:
        settings.ROOT_URLCONF = tuple(urls)
        transport = httpx.ASGITransport(
            BridgeMiddleware(get_asgi_application()), raise_app_exceptions=False
        )
        clients.append(httpx.AsyncClient(transport=transport, base_url="http://localhost"))
        return clients[-1]

    yield open_client
    for client in clients:
        await client.aclose()


def said(answer: httpx.Response) -> str:
    """Return the request and its answer in a line."""
    return f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}"


@pytest.fixture
def session(ada: User) -> str:
    """Log ada in, and return the key of her session."""
    client = Client()
    client.force_login(ada)
    return str(client.cookies["sessionid"].value)


@pytest.fixture
def site(settings: Any) -> None:
    """Serve one site, with sessions and users."""
    settings.ALLOWED_HOSTS = ["example.com"]
    settings.MIDDLEWARE = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]


async def outcome(function: Callable[..., Any], *args: Any) -> str:
    """Return what *function* returns or raises, in a line."""
    try:
        found = await function(*args)
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    return f"{function.__name__}: {found}"
