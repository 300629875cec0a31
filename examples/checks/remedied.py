import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.db import transaction
from django.http import HttpResponse
from django.urls import path

from ormbridge import BridgeMiddleware

os.environ.pop("DJANGO_ALLOW_ASYNC_UNSAFE", None)  # W008

POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}

settings.configure(
    INSTALLED_APPS=["ormbridge"],
    ROOT_URLCONF=__name__,
    ASGI_APPLICATION=f"{__name__}.application",
    SILENCED_SYSTEM_CHECKS=["ormbridge.W010"],  # PgBouncer has pool_mode = session
    ORMBRIDGE={"MAX_THREADS": 10, "RESET": f"{__name__}.reset"},  # W009
    DATABASES={
        "default": {
            **POSTGRESQL,
            "CONN_MAX_AGE": 60,  # W001
            "HOST": "pgbouncer",
            "PORT": 6432,
            "DISABLE_SERVER_SIDE_CURSORS": True,  # W005
            "ATOMIC_REQUESTS": True,
            "OPTIONS": {"assume_role": "seller"},
        },
        "archive": {**POSTGRESQL, "CONN_MAX_AGE": 60},  # W007
        "reports": {**POSTGRESQL, "OPTIONS": {"pool": {"max_size": 10}}},  # W004
        "tenants": {
            "ENGINE": "django_tenants.postgresql_backend",
            "NAME": "tenants",
            "OPTIONS": {"pool": {"max_size": 10}},
        },
        "scratch": {"ENGINE": "django.db.backends.sqlite3", "NAME": "scratch.sqlite3"},  # W003
    },
)


def reset(connection):
    if connection.alias == "tenants":
        connection.set_schema_to_public()


@transaction.non_atomic_requests  # W006
async def index(request):
    return HttpResponse("hello")


urlpatterns = [path("", index)]
application = BridgeMiddleware(get_asgi_application())  # W002

if __name__ == "__main__":
    execute_from_command_line(["manage.py", "check"])
