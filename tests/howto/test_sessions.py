"""The page ``howto/sessions``: the user and the session of an async view."""

import httpx
import pytest
from django.contrib.auth import aauthenticate, authenticate
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.decorators import login_required, permission_required, user_passes_test
from django.contrib.auth.models import AnonymousUser, Permission, User
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.template import engines
from django.test import Client
from django.urls import path

from ormbridge import BridgeMiddleware, database_sync_to_async

pytestmark = pytest.mark.django_db(transaction=True)
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {"context_processors": ["django.contrib.auth.context_processors.auth"]},
    }
]


@pytest.fixture
async def browse(settings):
    """Return a function that serves views and returns a client, of ada's if it is logged in."""
    ada = await database_sync_to_async(User.objects.create_user)("ada", password="secret")
    clients = []

    async def open_client(urls, *middleware, log_in=True):
        settings.ROOT_URLCONF = tuple(urls)
        settings.MIDDLEWARE = [*MIDDLEWARE, *middleware]
        settings.TEMPLATES = TEMPLATES
        settings.ALLOWED_HOSTS = ["localhost"]
        transport = httpx.ASGITransport(BridgeMiddleware(get_asgi_application()))
        client = httpx.AsyncClient(transport=transport, base_url="http://localhost")
        clients.append(client)
        if log_in:
            client.cookies.set("sessionid", await new_session(ada))
        return client

    yield open_client
    for client in clients:
        await client.aclose()


@database_sync_to_async
def new_session(user):
    """Log *user* in, and return the key of the session."""
    client = Client()
    client.force_login(user)
    return client.cookies["sessionid"].value


def answers(function):
    """Return the URLs of a view that says what *function* returns or raises."""

    async def view(request):
        try:
            return HttpResponse(await function(request))
        except Exception as error:
            return HttpResponse(f"{type(error).__name__}: {error}", status=500)

    return [path("", view)]


def rendered(source):
    """Return a coroutine function that renders the template *source*."""

    async def render(request):
        return engines["django"].from_string(source).render({}, request)

    return render


REFUSAL = "SynchronousOnlyOperation: You cannot call this from an async context"


# The example.


async def test_views(browse, load_example, recorded):
    """Logging in, the user, a session that counts, and logging out, in async views."""
    client = await browse(load_example("sessions/views").urlpatterns, log_in=False)
    said = []
    for method, where, data in [
        ("GET", "/account/", None),
        ("POST", "/log-in/", {"username": "ada", "password": "secret"}),
        ("GET", "/account/", None),
        ("GET", "/account/", None),
        ("GET", "/log-out/", None),
    ]:
        answer = await client.request(method, where, data=data)
        text = answer.text or f"to {answer.headers['location']}"
        said.append(f"{method} {where}: {answer.status_code} {text}")
    recorded("sessions/views", "\n".join(said))


# What to watch for.


async def test_request_user_is_refused(browse):
    """``request.user`` asks the database when it is first read, and an async view may not."""

    async def read(request):
        return request.user.username

    client = await browse(answers(read))
    assert (await client.get("/")).text.startswith(REFUSAL)


async def test_auser_does_not_fill_request_user(browse):
    """``auser()`` remembers the user for itself: ``request.user`` still asks."""

    async def read(request):
        await request.auser()
        return request.user.username

    client = await browse(answers(read))
    assert (await client.get("/")).text.startswith(REFUSAL)


def name_ada(get_response):
    """Put ada on the request, as middleware for tokens does, and ask no session."""

    def middleware(request):
        request.user = User.objects.get(username="ada")
        return get_response(request)

    return middleware


async def test_user_of_a_middleware(browse):
    """``auser()`` does not hear of the user that a middleware has put on the request."""

    async def read(request):
        return f"{request.user.username}, {type(await request.auser()).__name__}"

    client = await browse(answers(read), f"{__name__}.name_ada", log_in=False)
    assert (await client.get("/")).text == f"ada, {AnonymousUser.__name__}"


class ByEmail(ModelBackend):
    """Lets users log in by their address, as the backends of packages do."""

    def authenticate(self, request, email=None, password=None):
        """Return the user with *email*, whatever the password."""
        return User.objects.get(email=email)


class PermitsAll:
    """A backend without a-methods, as those of packages are."""

    def authenticate(self, request):
        """Say that nobody logs in without anything."""

    def has_perm(self, user, perm, obj=None):
        """Say yes."""
        return True


async def test_backend_of_a_package(browse, settings):
    """What a backend has no a-method for, Django's a-methods do without, and raise nothing."""
    settings.AUTHENTICATION_BACKENDS = [f"{__name__}.{each}" for each in ("ByEmail", "PermitsAll")]
    ada, login = await User.objects.aget(), {"email": "", "password": "secret"}
    assert await database_sync_to_async(authenticate)(None, **login) == ada
    assert await aauthenticate(None, **login) is None
    assert await database_sync_to_async(ada.has_perm)("auth.add_user")
    assert not await ada.ahas_perm("auth.add_user")


async def test_session_is_refused(browse):
    """So does a key of the session; ``aget`` does not."""

    async def read(request):
        return request.session["visits"]

    client = await browse(answers(read))
    assert (await client.get("/")).text.startswith(REFUSAL)


async def test_middleware_that_read_the_user(browse):
    """Where synchronous middleware has read the user before, the view may."""

    async def read(request):
        return request.user.username

    last = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    client = await browse(answers(read), last)
    assert (await client.get("/")).text == "ada"


TEMPLATE = "{% if not user.is_authenticated %}please log in{% else %}for members{% endif %}"


async def test_template_refuses_a_bare_if(browse):
    """A template that an async view renders raises for the user alone."""
    client = await browse(answers(rendered("{% if user.is_authenticated %}in{% endif %}")))
    assert (await client.get("/")).text.startswith(REFUSAL)


async def test_template_swallows_the_error(browse):
    """With an operator it swallows the error: a stranger with any session cookie is let in."""
    client = await browse(answers(rendered(TEMPLATE)), log_in=False)
    assert (await client.get("/")).text == "please log in"
    client.cookies.set("sessionid", "a" * 32)  # of nobody
    assert (await client.get("/")).text == "for members"


async def test_template_with_the_user_set(browse):
    """With ``request.user`` set by the view, templates are right."""

    async def render(request):
        request.user = await request.auser()
        return await rendered(TEMPLATE)(request)

    client = await browse(answers(render))
    assert (await client.get("/")).text == "for members"
    stranger = await browse(answers(render), log_in=False)
    stranger.cookies.set("sessionid", "a" * 32)
    assert (await stranger.get("/")).text == "please log in"


async def test_template_rendered_through_the_bridge(browse):
    """Rendered on a worker, ``user`` and ``perms`` may query."""
    source = "{{ user.username }} {% if not perms.auth.add_user %}may not{% endif %}"

    async def render(request):
        return await database_sync_to_async(engines["django"].from_string(source).render)(
            {}, request
        )

    client = await browse(answers(render))
    assert (await client.get("/")).text == "ada may not"


async def test_permissions_of_a_template(browse):
    """``perms`` in a template queries, also where the view has set the user."""

    async def render(request):
        request.user = await request.auser()
        return await rendered("{% if perms.auth.add_user %}may{% endif %}")(request)

    client = await browse(answers(render))
    assert (await client.get("/")).text.startswith(REFUSAL)


DECORATORS = {
    "login": login_required,
    "permission": permission_required("auth.add_user", raise_exception=True),
    "test": user_passes_test(lambda user: user.username == "ada"),
}


@pytest.mark.parametrize("name", DECORATORS)
async def test_decorators_of_async_views(browse, name):
    """Django's decorators ask for the user of an async view, and let in who may."""

    @DECORATORS[name]
    async def view(request):
        return HttpResponse("for members")

    client = await browse([path("", view)])
    ada = await User.objects.aget(username="ada")
    await ada.user_permissions.aadd(await Permission.objects.aget(codename="add_user"))
    assert (await client.get("/")).text == "for members"
    client.cookies.clear()
    assert (await client.get("/")).status_code == {"permission": 403}.get(name, 302)
