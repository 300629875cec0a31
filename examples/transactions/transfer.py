import asyncio
from pathlib import Path

import django
from django.conf import settings
from django.db import connection, models

from ormbridge import atomic

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": "bank.sqlite3",
            "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()


class Account(models.Model):
    owner = models.CharField(max_length=100, unique=True)
    balance = models.IntegerField()

    class Meta:
        app_label = "bank"

    def __str__(self):
        return self.owner


@atomic()  # <--
async def transfer(source, target, amount):
    accounts = Account.objects.select_for_update().order_by("pk")
    found = {each.owner: each async for each in accounts.filter(owner__in=[source, target])}
    found[source].balance -= amount
    found[target].balance += amount
    await found[source].asave()
    await found[target].asave()
    if found[source].balance < 0:
        raise ValueError(f"{source} has not enough")


async def main():
    await Account.objects.abulk_create(Account(owner=name, balance=100) for name in ["ada", "bob"])
    transfers = [transfer("ada", "bob", 30) for _ in range(5)]
    outcomes = await asyncio.gather(*transfers, return_exceptions=True)
    print(f"{outcomes.count(None)} done, {len(outcomes) - outcomes.count(None)} rolled back")
    print({each.owner: each.balance async for each in Account.objects.order_by("pk")})


if __name__ == "__main__":
    Path("bank.sqlite3").unlink(missing_ok=True)
    with connection.schema_editor() as editor:
        editor.create_model(Account)
    asyncio.run(main())
