"""Settings of the demo; both sides share them."""

import os
from pathlib import Path

from django.core.management.utils import get_random_secret_key

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["ORMBRIDGE_DEMO_DATABASE"],
        "CONN_MAX_AGE": 60,
    }
}
# The same bound on every machine. ASGI_THREADS in the environment wins over it.
ORMBRIDGE = {"MAX_THREADS": 10}

# A name that somebody else points at this machine is refused, and so are sockets of other pages.
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]  # looks at the name

INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
ROOT_URLCONF = "examples.demo.urls"
SECRET_KEY = get_random_secret_key()
TEMPLATES = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "DIRS": [Path(__file__).parent]}
]
USE_TZ = True
