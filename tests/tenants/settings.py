"""Settings of the project. ``TENANTS`` in the environment, as JSON, says what differs in a run."""

import json
import os

from tests import settings as tests

RUN = json.loads(os.environ["TENANTS"])

DATABASES = {
    "default": {
        **tests.postgresql(),
        "ENGINE": "django_tenants.postgresql_backend",
        "NAME": RUN["database"],
        "CONN_MAX_AGE": RUN["age"],
    }
}
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
ORMBRIDGE = RUN["ormbridge"]

TENANT_MODEL = "tenants.Client"
TENANT_DOMAIN_MODEL = "tenants.Domain"
SHARED_APPS = [
    "django_tenants",
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "tests.tenants",
]
TENANT_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
INSTALLED_APPS = [*SHARED_APPS, "channels"]
SHOW_PUBLIC_IF_NO_TENANT_FOUND = True
# Issue SET search_path once for each set_tenant(), not before each statement: for the bridge, the
# harder case.
TENANT_LIMIT_SET_CALLS = RUN.get("limit", False)
MIDDLEWARE = ["django_tenants.middleware.main.TenantMainMiddleware"] if RUN["middleware"] else []

ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.tenants.views"
DEFAULT_AUTO_FIELD = tests.DEFAULT_AUTO_FIELD
SECRET_KEY = tests.SECRET_KEY
USE_TZ = True
