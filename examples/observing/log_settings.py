import asyncio

import django
from django.conf import settings
from django.db import transaction

from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "users.sqlite3"}},
    LOGGING={
        "version": 1,
        "formatters": {"short": {"format": "{levelname} {name}: {message}", "style": "{"}},
        "handlers": {
            "console": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stdout",
                "formatter": "short",
            }
        },
        "loggers": {"ormbridge": {"handlers": ["console"], "level": "DEBUG"}},  # <--
    },
)
django.setup()


@database_sync_to_async
def forget_to_commit():
    transaction.set_autocommit(False)
    transaction.get_connection().cursor().execute("SELECT 1")


asyncio.run(forget_to_commit())
