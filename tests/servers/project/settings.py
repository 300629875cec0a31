"""Settings of the served project: those of the tests, on a database that the harness made.

The harness says the rest through the environment: ``SERVERS_DATABASE`` is the name of the
database, ``SERVERS_NAME`` what PostgreSQL shows as the name of the application, and
``SERVERS_ORMBRIDGE`` and ``SERVERS_CONN_MAX_AGE`` those settings as JSON.
"""

import json
import os

from tests import settings as tests

DATABASES = {
    "default": {
        **tests.postgresql(),
        "NAME": os.environ["SERVERS_DATABASE"],
        "OPTIONS": {"application_name": os.environ.get("SERVERS_NAME", "")},
        "CONN_MAX_AGE": json.loads(os.environ.get("SERVERS_CONN_MAX_AGE", "60")),
    }
}
ORMBRIDGE = json.loads(os.environ.get("SERVERS_ORMBRIDGE", "{}"))

ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "tests.servers.project.urls"
DEFAULT_AUTO_FIELD = tests.DEFAULT_AUTO_FIELD
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "channels"]
SECRET_KEY = tests.SECRET_KEY
USE_TZ = True
# The errors of the views go to the output of the server, which the harness collects.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}
