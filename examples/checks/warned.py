import os

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.management import execute_from_command_line
from django.http import HttpResponse
from django.urls import path

os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"  # W008

POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}

settings.configure(
    INSTALLED_APPS=["ormbridge"],
    ROOT_URLCONF=__name__,
    ASGI_APPLICATION=f"{__name__}.application",
    ORMBRIDGE={"MAX_THREADS": 10},
    DATABASES={
        "default": {
            **POSTGRESQL,
            "CONN_MAX_AGE": 0,  # W001
            "HOST": "pgbouncer",
            "PORT": 6432,
            "DISABLE_SERVER_SIDE_CURSORS": False,  # W005
            "ATOMIC_REQUESTS": True,
            "OPTIONS": {"assume_role": "seller"},  # W010
        },
        "archive": {**POSTGRESQL, "CONN_MAX_AGE": 60, "AUTOCOMMIT": False},  # W007
        "reports": {**POSTGRESQL, "OPTIONS": {"pool": {"max_size": 4}}},  # W004
        "tenants": {
            "ENGINE": "django_tenants.postgresql_backend",
            "NAME": "tenants",
            "OPTIONS": {"pool": {"max_size": 10}},
        },  # W009
        "scratch": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},  # W003
    },
)


async def index(request):  # W006
    return HttpResponse("hello")


urlpatterns = [path("", index)]
application = get_asgi_application()  # W002

if __name__ == "__main__":
    execute_from_command_line(["manage.py", "check"])
