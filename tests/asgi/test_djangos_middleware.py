"""Django's middleware of headers, sessions and messages: what of it takes a thread."""

from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.contrib import messages
from django.contrib.auth.models import AnonymousUser
from django.contrib.messages.storage.cookie import CookieStorage
from django.contrib.sessions.backends.signed_cookies import SessionStore as SessionOfCookies
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import get_token
from django.middleware.security import SecurityMiddleware
from django.utils.decorators import async_only_middleware
from django.utils.functional import SimpleLazyObject

from ormbridge import stats
from ormbridge.asgi.context import LeaseContext
from ormbridge.asgi.sync_to_async import on_route
from tests.bench.contestant import MIDDLEWARE
from tests.core.gate import GUARD
from tests.core.support import thread_name
from tests.support.http import SERVER, get, pong


@async_only_middleware
def session_of_ones_own(get_response):
    async def middleware(request):
        request.session = {}
        return await get_response(request)

    return middleware


class Subclass(SecurityMiddleware):
    """May do anything in what Django's own method asks it."""


OF_HEADERS = [
    f"{__name__}.session_of_ones_own",
    *("django.middleware.security.SecurityMiddleware", "django.middleware.csrf.CsrfViewMiddleware"),
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


async def test_headers_and_cookies_take_no_worker(serve):
    """Django's middleware that asks neither the database nor the body takes no worker."""

    async def view(request):
        return HttpResponse(f"{get_token(request) != ''} {request.user.is_anonymous}")

    def lazily(request):
        return AnonymousUser()

    with mock.patch("django.contrib.auth.middleware.get_user", lazily):
        assert await get(serve(view, *OF_HEADERS)) == "200 True True"
    assert stats().threads == 0


@pytest.fixture
def placed(monkeypatch):
    """Return what is sent to a worker: steps of the middleware of sessions and messages."""
    placed = []
    place = LeaseContext.place

    def note(self, call):
        _, _, method = str(call).partition("SessionMiddleware.")
        placed.append(f"session {method}" if method else f"messages {str(call).rpartition('.')[2]}")
        place(self, call)

    monkeypatch.setattr(LeaseContext, "place", note)
    return placed


async def test_middleware_that_startproject_writes_down(serve, placed):
    """None of its thirteen calls takes a worker."""
    assert (await get(serve(pong, *MIDDLEWARE))).startswith("200 ")
    assert placed == []
    assert stats().threads == 0


async def test_sessions_and_messages_are_saved_on_a_worker(serve, settings, placed):
    """A session that was changed, and a message that was added or shown."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"

    async def change(request):
        request.session["seen"] = True
        return HttpResponse()

    async def add(request):
        messages.info(request, "hello")
        return HttpResponse()

    async def show(request):
        return HttpResponse(list(messages.get_messages(request)))

    for view, expected in (
        (change, ["session process_response"]),
        (add, ["messages process_response"]),
        (show, ["messages process_response"]),
    ):
        assert (await get(serve(view, *MIDDLEWARE))).startswith("200")
        assert placed == expected
        placed.clear()


class SessionStore(SessionOfCookies):
    """A project's own: who knows what it does."""


class MessageStorage(CookieStorage):
    """The same for messages."""


ALL_OF_SESSIONS = ["session process_request", "session process_response"]


ALL_OF_MESSAGES = ["messages process_request", "messages process_response"]


@pytest.mark.parametrize(
    ("setting", "value", "expected"),
    [
        ("SESSION_ENGINE", __name__, ALL_OF_SESSIONS),
        ("MESSAGE_STORAGE", f"{__name__}.MessageStorage", ALL_OF_MESSAGES),
        (
            "SESSION_SAVE_EVERY_REQUEST",
            True,
            [ALL_OF_SESSIONS[0], *ALL_OF_MESSAGES, ALL_OF_SESSIONS[1]],
        ),
    ],
)
async def test_sessions_of_ones_own_take_a_worker(
    serve, settings, placed, setting, value, expected
):
    """Sessions and messages that others keep run on a worker; and what is saved each time."""
    settings.SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
    setattr(settings, setting, value)
    assert (await get(serve(pong, *MIDDLEWARE))).startswith("200 ")
    assert placed == expected


async def test_session_that_was_replaced_takes_a_worker(serve, placed):
    """What another middleware has put in the place of the session is not asked on the loop."""

    async def view(request):
        request.session = SimpleLazyObject(lambda: SessionStore() if thread_name() else None)
        return HttpResponse()

    assert await get(serve(view, *MIDDLEWARE)) == "200"
    assert placed == ["session process_response"]


async def test_middleware_called_by_keyword_takes_a_worker(context):
    """Who calls a middleware by himself, in another form than Django, is served."""
    middleware = SecurityMiddleware(lambda request: HttpResponse())
    with on_route(context):
        assert await sync_to_async(middleware.process_request)(request=HttpRequest()) is None
    assert stats().threads == 1
    context.release(end=True)


async def test_error_of_a_middleware_without_a_worker(serve, settings):
    """What such a middleware raises comes to Django as it does from a thread."""
    application = serve(pong, "django.middleware.common.CommonMiddleware")
    settings.ALLOWED_HOSTS = ["elsewhere.example"]
    assert (await get(application)).startswith("400 ")
    assert stats().threads == 0


@pytest.mark.parametrize(
    ("names", "in_sessions"), [([f"{__name__}.Subclass"], False), (OF_HEADERS, True)]
)
async def test_middleware_that_may_ask_takes_a_worker(serve, settings, names, in_sessions):
    """A subclass runs on a worker, and so does what may ask for a session."""
    settings.CSRF_USE_SESSIONS = in_sessions
    assert (await get(serve(pong, *names))).startswith("200 ")
    assert stats().threads == 1


async def test_method_of_django_that_was_replaced_takes_a_worker(serve, monkeypatch):
    """A method that a project puts in the place of Django's is a call like any other."""
    seen = []
    monkeypatch.setattr(
        SecurityMiddleware, "process_request", lambda self, request: seen.append(thread_name())
    )
    assert (await get(serve(pong, OF_HEADERS[1]))).startswith("200 ")
    assert seen == ["ormbridge-worker-1"]


async def test_body_is_read_on_a_worker(serve):
    """Where the check against forgery may read the body, it runs on a worker."""
    seen = []

    class Body(dict):
        def get(self, *key):
            seen.append(thread_name())
            return ""

    application = serve(pong, "django.middleware.csrf.CsrfViewMiddleware")
    with mock.patch("django.core.handlers.asgi.ASGIRequest.POST", Body()):
        scope = {"type": "http", "method": "POST", "path": "/", **SERVER}
        cookie = b"csrftoken=" + b"a" * 32
        scope["headers"] = [(b"cookie", cookie)]
        client = ApplicationCommunicator(application, scope)
        await client.send_input({"type": "http.request"})
        assert (await client.receive_output(GUARD))["status"] == 403
        await client.wait(GUARD)
    assert seen == ["ormbridge-worker-1"]
