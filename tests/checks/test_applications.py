"""``manage.py check`` on the application: the middleware, its views, and plain queries."""

import functools
import types

import pytest
from channels.auth import AuthMiddlewareStack
from channels.middleware import BaseMiddleware
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from channels.sessions import CookieMiddleware
from django.contrib.auth.models import User
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.checks import run_checks
from django.core.handlers.asgi import ASGIHandler
from django.db import connection, connections, transaction
from django.db.utils import ConnectionHandler
from django.http import HttpResponse
from django.test import AsyncClient
from django.urls import include, path, re_path
from django.utils.functional import SimpleLazyObject
from django.views import View

from ormbridge import BridgeMiddleware, atomic, checks, database_sync_to_async
from tests.checks.conftest import POSTGRESQL, SQLITE
from tests.settings import CHOICE

# W002


@pytest.mark.parametrize("age", [60, None])
def test_application_without_the_middleware(check, asgi, settings, age):
    """W002: connections persist, and the application is Django's own, not wrapped."""
    asgi(ASGIHandler())
    settings.ASGI_APPLICATION = "project.asgi.application"
    assert check(**POSTGRESQL | {"CONN_MAX_AGE": age}) == [
        f"settings.DATABASES['default']: (ormbridge.W002) CONN_MAX_AGE is {age}, and "
        "project.asgi.application is not in BridgeMiddleware: each request leaves its connection "
        "behind\n"
        "\tHINT: write application = ormbridge.BridgeMiddleware(application) in that module"
    ]


@pytest.mark.parametrize(
    ("root_urlconf", "asgi_application"),
    [("project.urls", None), ("project.urls", ""), ("elsewhere.urls", "project.asgi.application")],
)
def test_where_the_application_is(check, asgi, settings, root_urlconf, asgi_application):
    """The application is the one of ASGI_APPLICATION, or else the one beside ROOT_URLCONF."""
    asgi(ASGIHandler())
    settings.ROOT_URLCONF, settings.ASGI_APPLICATION = root_urlconf, asgi_application
    (warning,) = check(**POSTGRESQL)
    assert "project.asgi.application is not in BridgeMiddleware" in warning
    asgi(BridgeMiddleware(ASGIHandler()))
    assert check(**POSTGRESQL) == []


async def consumer(scope, receive, send):
    """Stand for a consumer."""


class OtherMiddleware:
    """A middleware as Starlette, uvicorn and Sentry have them."""

    __module__ = "starlette.middleware.cors"

    def __init__(self, app):
        self.app = app


KNOWN = {
    "router": lambda inner: ProtocolTypeRouter({"http": inner, "websocket": consumer}),
    "urls": lambda inner: URLRouter([path("events", consumer), re_path("", inner)]),
    "static": ASGIStaticFilesHandler,
    "auth": AuthMiddlewareStack,
    "origin": AllowedHostsOriginValidator,
    "others": OtherMiddleware,
    "nested": lambda inner: ProtocolTypeRouter({"http": CookieMiddleware(BaseMiddleware(inner))}),
}


@pytest.mark.parametrize("wrap", KNOWN.values(), ids=KNOWN)
def test_middleware_inside_another(check, asgi, settings, wrap):
    """W002 looks through what is known to hand requests on, down to Django or the middleware."""
    settings.ASGI_APPLICATION = "project.asgi.application"
    settings.STATIC_URL = "static/"
    asgi(wrap(ASGIHandler()))
    (warning,) = check(**POSTGRESQL)
    assert "ormbridge.W002" in warning
    asgi(wrap(BridgeMiddleware(ASGIHandler())))
    assert check(**POSTGRESQL) == []


def test_middleware_around_http_alone(check, asgi, settings):
    """W002 is about requests: what a ProtocolTypeRouter has for "http"."""
    settings.ASGI_APPLICATION = "project.asgi.application"
    bare = ASGIHandler()
    bridged = BridgeMiddleware(bare)
    asgi(ProtocolTypeRouter({"http": bare, "websocket": bridged}))
    assert len(check(**POSTGRESQL)) == 1
    asgi(ProtocolTypeRouter({"http": bridged, "websocket": bare}))
    assert check(**POSTGRESQL) == []
    asgi(ProtocolTypeRouter({"websocket": bare}))
    assert check(**POSTGRESQL) == []


def in_function(inner):
    async def application(scope, receive, send):
        await inner(scope, receive, send)

    return application


def in_function_that_wraps(inner):
    return functools.wraps(inner)(in_function(BridgeMiddleware(inner)))


class Own:
    """A class of somebody's own, which keeps the application under any name."""

    def __init__(self, name, inner):
        setattr(self, name, inner)
        self.bridged = BridgeMiddleware(inner)

    async def __call__(self, scope, receive, send):
        await self.bridged(scope, receive, send)


class OwnHandler(ASGIHandler):
    """A handler of somebody's own, which adds the middleware where nobody sees it."""

    def __init__(self, inner):
        super().__init__()
        self.bridged = BridgeMiddleware(super().__call__)

    async def __call__(self, scope, receive, send):
        await self.bridged(scope, receive, send)


class OwnMiddleware(BaseMiddleware):
    """A middleware of Channels, which adds ours."""

    async def __call__(self, scope, receive, send):
        await BridgeMiddleware(self.inner)(scope, receive, send)


class Mounting:
    """A Starlette or FastAPI application, which mounts others."""

    __module__ = "starlette.applications"

    def __init__(self, inner):
        mount = type("Mount", (), {"__module__": "starlette.routing", "app": inner})()
        self.router = types.SimpleNamespace(routes=[mount])
        self.routes = [mount]

    async def __call__(self, scope, receive, send):
        """Stand for what finds the route."""


UNKNOWN = {
    "function": lambda inner: in_function(BridgeMiddleware(inner)),
    "wraps": in_function_that_wraps,
    "partial": lambda inner: functools.partial(in_function(BridgeMiddleware(inner))),
    "method": lambda inner: Own("kept", inner).__call__,
    "handler": OwnHandler,
    "channels": OwnMiddleware,
    "mounted": lambda inner: Mounting(BridgeMiddleware(inner)),
    "mounting": lambda inner: BridgeMiddleware(Mounting(inner)),
    "lazy": lambda inner: SimpleLazyObject(lambda: BridgeMiddleware(inner)),
    **{
        name: functools.partial(Own, name)
        for name in ("application", "app", "inner", "handler", "wrapped", "callback", "routes")
    },
}


@pytest.mark.parametrize("wrap", UNKNOWN.values(), ids=UNKNOWN)
def test_application_that_cannot_be_seen_through(check, asgi, settings, wrap):
    """W002 is silent where code that it does not know may add the middleware."""
    settings.ASGI_APPLICATION = "project.asgi.application"
    asgi(wrap(ASGIHandler()))
    assert check(**POSTGRESQL) == []
    asgi(KNOWN["nested"](wrap(ASGIHandler())))
    assert check(**POSTGRESQL) == []


def test_closed_connections_need_no_middleware(check, asgi, settings):
    """W002 is silent where no connection outlives its request."""
    asgi(ASGIHandler())
    settings.ASGI_APPLICATION = "project.asgi.application"
    assert check(**SQLITE, CONN_MAX_AGE=0) == []


@pytest.mark.parametrize("wrong", ["", "nowhere.asgi.application", "project.asgi.app", 3])
def test_application_that_cannot_be_found(check, asgi, settings, wrong):
    """W002 is silent where the application cannot be found."""
    asgi(ASGIHandler())
    settings.ASGI_APPLICATION = wrong
    assert check(**POSTGRESQL) == []


def test_application_that_fails(check, settings, tmp_path, monkeypatch):
    """W002 is silent where the module of the application cannot be imported."""
    (tmp_path / "failing_asgi.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    settings.ASGI_APPLICATION = "failing_asgi.application"
    assert check(**POSTGRESQL) == []


def test_applications_in_a_ring(check, asgi, settings):
    """W002 is silent, and the check ends, where one application leads back to itself."""
    ring = BaseMiddleware(None)
    ring.inner = ring
    asgi(ring)
    settings.ASGI_APPLICATION = "project.asgi.application"
    assert check(**POSTGRESQL) == []


# W006


async def view(request):
    """Answer on the loop."""
    return HttpResponse("async")


@transaction.non_atomic_requests
async def exempt_view(request):
    """Answer on the loop, without a transaction."""
    return HttpResponse("async")


@transaction.non_atomic_requests(using="other")
async def view_exempt_elsewhere(request):
    """Answer on the loop, without a transaction on another database."""


def sync_view(request):
    """Answer on a thread."""


class AsyncView(View):
    """Answer on the loop, as a class."""

    async def get(self, request):
        """Answer."""


class SyncView(View):
    """Answer on a thread, as a class."""

    def get(self, request):
        """Answer."""


HERE = __name__


def test_atomic_requests_with_async_views(check, settings):
    """W006: ATOMIC_REQUESTS, and async views; three are named, each once."""
    inner = [path("a", view), path("b", AsyncView.as_view()), path("c", view)]
    settings.ROOT_URLCONF = (
        path("inner/", include(inner)),
        path("sync", sync_view),
        path("sync-class", SyncView.as_view()),
        path("exempt", exempt_view),
    )
    start = (
        "settings.DATABASES['default']: (ormbridge.W006) ATOMIC_REQUESTS is True, which Django "
        f"refuses to async views: {HERE}.view, {HERE}.AsyncView"
    )
    hint = "\n\tHINT: decorate them with @transaction.non_atomic_requests(using='default')"
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == [start + hint]
    settings.ROOT_URLCONF += (path("d", view_exempt_elsewhere),)
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == [
        f"{start}, {HERE}.view_exempt_elsewhere{hint}"
    ]

    async def fourth(request):
        pass

    settings.ROOT_URLCONF += (path("e", fourth),)
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == [
        f"{start}, {HERE}.view_exempt_elsewhere and 1 more{hint}"
    ]


def test_async_views_without_atomic_requests(check, settings):
    """W006 is silent where ATOMIC_REQUESTS is off, or no async view is left."""
    settings.ROOT_URLCONF = (path("", view),)
    assert check(**POSTGRESQL) == []
    settings.ROOT_URLCONF = (path("", exempt_view), path("sync", sync_view))
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == []


def test_exemption_is_for_one_database(monkeypatch, settings):
    """W006 is silent about the database that a view is exempt from, and about that one alone."""
    databases = {"default": POSTGRESQL, "other": POSTGRESQL}
    databases = {alias: {**each, "ATOMIC_REQUESTS": True} for alias, each in databases.items()}
    monkeypatch.setattr(checks, "connections", ConnectionHandler(databases))
    settings.ROOT_URLCONF = (path("", exempt_view), path("other", view_exempt_elsewhere))
    default, other = run_checks(tags=["ormbridge"])
    assert default.msg.endswith(f"async views: {HERE}.view_exempt_elsewhere")
    assert other.msg.endswith(f"async views: {HERE}.exempt_view")


@pytest.mark.parametrize("wrong", [None, "nowhere.urls", 3])
def test_urlconf_that_does_not_work(check, settings, wrong):
    """W006 leaves a URLconf that cannot be read to Django's own checks."""
    settings.ROOT_URLCONF = wrong
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == []


def test_without_a_urlconf(check, settings):
    """W006 is silent where there is no ROOT_URLCONF."""
    if hasattr(settings, "ROOT_URLCONF"):
        del settings.ROOT_URLCONF
    assert check(**POSTGRESQL, ATOMIC_REQUESTS=True) == []


async def test_django_refuses_what_is_warned_of(settings, connection_settings):
    """Django answers an async view under ATOMIC_REQUESTS with an error, unless it is exempt."""
    connection_settings(ATOMIC_REQUESTS=True)
    settings.ROOT_URLCONF = (path("", view), path("exempt", exempt_view))
    with pytest.raises(RuntimeError, match=r"^You cannot use ATOMIC_REQUESTS with async views\.$"):
        await AsyncClient().get("/")
    response = await AsyncClient().get("/exempt")
    assert (response.status_code, response.content) == (200, b"async")


# W008


@pytest.mark.parametrize("value", ["true", "1", "0"])
def test_async_unsafe_is_allowed(check, monkeypatch, value):
    """W008: the variable is set with which Django lets plain queries run in coroutines."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", value)
    assert check(**POSTGRESQL) == [
        "?: (ormbridge.W008) DJANGO_ALLOW_ASYNC_UNSAFE is set: a plain query in a coroutine runs "
        "outside of its atomic()\n"
        "\tHINT: unset it, and use a-methods or database_sync_to_async"
    ]


def test_async_unsafe_that_is_empty(check, monkeypatch):
    """W008 is silent where the variable is empty: Django then raises, as without it."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "")
    assert check(**POSTGRESQL) == []


async def test_plain_query_is_outside_of_its_block(
    transactional_db, connection_settings, monkeypatch
):
    """With the variable, what a plain query in ``atomic()`` writes survives the rollback."""
    if CHOICE == "sqlite":  # or the block would have the only lock for writing from its beginning
        options = {**connections.settings["default"]["OPTIONS"], "transaction_mode": "DEFERRED"}
        connection_settings(OPTIONS=options)
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    async with atomic():
        User.objects.create(username="plain")
        connection.close()  # that of the coroutine, which nobody else would close
        await User.objects.acreate(username="awaited")
        await database_sync_to_async(transaction.set_rollback)(True)
    assert [user.username async for user in User.objects.all()] == ["plain"]
