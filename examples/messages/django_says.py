import logging

import django
from asgiref.sync import async_to_sync
from django.conf import settings
from django.core.asgi import get_asgi_application

settings.configure(
    ALLOWED_HOSTS=["testserver"],
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": ":memory:",
            "ATOMIC_REQUESTS": True,
        }
    },
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"],
    ROOT_URLCONF=__name__,
)
django.setup()
logging.disable()  # the messages are printed below

from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.http import HttpResponse, StreamingHttpResponse
from django.test import AsyncClient, AsyncRequestFactory
from django.urls import path
from django.views.generic import ListView


async def view(request):
    return HttpResponse("hello")


unawaited = []


@transaction.non_atomic_requests
def view_without_await(request):
    unawaited.append(view(request))
    return unawaited[0]


@transaction.non_atomic_requests
async def profile(request):
    return HttpResponse(await request.auser())


class Users(ListView):
    model = User

    async def post(self, request):
        return HttpResponse("saved")


urlpatterns = [path("", view), path("coroutine", view_without_await), path("profile", profile)]


def async_view_with_atomic_requests():
    async_to_sync(AsyncClient().get)("/")


def view_that_returns_no_response():
    try:
        async_to_sync(AsyncClient().get)("/coroutine")
    finally:
        unawaited[0].close()


def user_without_the_middleware():
    async_to_sync(AsyncClient().get)("/profile")


def request_that_no_middleware_has_seen():
    print(AsyncRequestFactory().get("/profile").session)


def async_handler_beside_an_inherited_one():
    Users.as_view()


def query_after_an_error_in_atomic():
    with transaction.atomic():
        try:
            User.objects.create(username="ada")
            User.objects.create(username="ada")
        except IntegrityError:
            User.objects.count()


def lock_without_a_transaction():
    features = connection.features
    features.has_select_for_update = True  # SQLite has none, and would say nothing
    User.objects.select_for_update().first()


def durable_inside_a_block():
    with transaction.atomic(), transaction.atomic(durable=True):
        pass


def commit_inside_a_block():
    with transaction.atomic():
        transaction.commit()


def synchronous_iterator_under_asgi():
    response = StreamingHttpResponse(["a", "b"])

    async def read():
        return [part async for part in response]

    async_to_sync(read)()


def asynchronous_iterator_under_wsgi():
    async def parts():
        yield "a"

    list(StreamingHttpResponse(parts()))


def socket_without_channels():
    async_to_sync(get_asgi_application())({"type": "websocket"}, None, None)


def lifespan():
    async_to_sync(get_asgi_application())({"type": "lifespan"}, None, None)


MISTAKES = [
    async_view_with_atomic_requests,
    view_that_returns_no_response,
    user_without_the_middleware,
    request_that_no_middleware_has_seen,
    async_handler_beside_an_inherited_one,
    query_after_an_error_in_atomic,
    lock_without_a_transaction,
    durable_inside_a_block,
    commit_inside_a_block,
    synchronous_iterator_under_asgi,
    asynchronous_iterator_under_wsgi,
    socket_without_channels,
    lifespan,
]

if __name__ == "__main__":
    call_command("migrate", verbosity=0)
    for make in MISTAKES:
        try:
            make()
        except Exception as error:
            print(f"{make.__name__}: {type(error).__name__}: {error}")
