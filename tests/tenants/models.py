"""The models that django-tenants asks for, and the table that says whose schema one sees."""

from typing import ClassVar

from django.db import connection, models
from django_tenants.models import DomainMixin, TenantMixin


class Client(TenantMixin):
    auto_create_schema = False

    class Meta:
        app_label = "tenants"

    def __str__(self) -> str:
        return self.schema_name


class Domain(DomainMixin):
    class Meta:
        app_label = "tenants"


class Owner(models.Model):
    name = models.CharField(max_length=50)

    class Meta:
        app_label = "tenants"
        db_table = "owner"
        managed = False
        ordering: ClassVar = ["pk"]

    def __str__(self) -> str:
        return self.name


def owner() -> str:
    """Return whose tables the thread's connection sees, and check that django-tenants knows it."""
    seen = Owner.objects.get().name
    return seen if seen == connection.schema_name else f"{seen}, not {connection.schema_name}"
