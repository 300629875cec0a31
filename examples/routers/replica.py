from contextlib import asynccontextmanager
from contextvars import ContextVar

from ormbridge import atomic

has_written = ContextVar("has_written", default=False)
keeps_to_primary = ContextVar("keeps_to_primary", default=False)


class ReplicaRouter:
    def db_for_read(self, model, **hints):
        return "default" if has_written.get() or keeps_to_primary.get() else "replica"

    def db_for_write(self, model, **hints):
        has_written.set(True)  # what this request wrote, it reads back  # <--
        return "default"

    def allow_relation(self, one, other, **hints):
        return True

    def allow_migrate(self, db, app_label, **hints):
        return db == "default"


@asynccontextmanager
async def on_primary():
    token = keeps_to_primary.set(True)
    try:
        async with atomic():
            yield
    finally:
        keeps_to_primary.reset(token)
