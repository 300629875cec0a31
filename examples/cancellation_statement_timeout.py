import django
from django.conf import settings
from django.db import OperationalError, connection

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "OPTIONS": {"options": "-c statement_timeout=100"},  # <-- milliseconds
        }
    },
)
django.setup()

if __name__ == "__main__":
    with connection.cursor() as cursor:
        try:
            cursor.execute("SELECT pg_sleep(30)")
        except OperationalError as error:
            print(error)
