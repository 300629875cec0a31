import asyncio
import time

import django
from django.conf import settings
from django.db import connection, models, transaction

from ormbridge import database_sync_to_async

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "visits.sqlite3"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()


class Visit(models.Model):
    number = models.IntegerField()

    class Meta:
        app_label = "visits"

    def __str__(self):
        return str(self.number)


@database_sync_to_async
@transaction.atomic
def visit():
    visits = Visit.objects.count()
    time.sleep(0.02)  # what else it does between reading and writing
    Visit.objects.create(number=visits + 1)


async def main():
    outcomes = await asyncio.gather(*[visit() for _ in range(10)], return_exceptions=True)
    print({str(outcome) for outcome in outcomes if outcome} or "all saved")


if __name__ == "__main__":
    with connection.schema_editor() as editor:
        editor.create_model(Visit)
    asyncio.run(main())
