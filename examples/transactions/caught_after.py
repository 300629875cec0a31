import asyncio
from pathlib import Path

import django
from django.conf import settings
from django.db import IntegrityError, connection, models

from ormbridge import TransactionAborted, atomic

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "shop.sqlite3"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()


class Customer(models.Model):
    email = models.EmailField(unique=True)

    class Meta:
        app_label = "shop"

    def __str__(self):
        return self.email


class Order(models.Model):
    what = models.CharField(max_length=100)

    class Meta:
        app_label = "shop"

    def __str__(self):
        return self.what


async def order(what, email):
    async with atomic():
        await Order.objects.acreate(what=what)
        try:
            async with atomic():  # <--
                await Customer.objects.acreate(email=email)
        except IntegrityError:
            print("known already")


async def main():
    await Customer.objects.acreate(email="ada@example.com")
    try:
        await order("a pen", "ada@example.com")
    except TransactionAborted as error:
        print(f"TransactionAborted: {error}")
    print("orders:", [each.what async for each in Order.objects.all()])


if __name__ == "__main__":
    Path("shop.sqlite3").unlink(missing_ok=True)
    with connection.schema_editor() as editor:
        editor.create_model(Customer)
        editor.create_model(Order)
    asyncio.run(main())
