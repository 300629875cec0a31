"""The heads of the blocks name what the blocks import, and what they cannot do without."""

import ast
import sys

import pytest

from docs._ext.record import markers, places, recordings
from tests.docs.conftest import ROOT

#: What one installs for an import; Django brings asgiref, and each project has a mysite.
PACKAGES = {
    "MySQLdb": "mysqlclient",
    "adrf": "adrf",
    "anyio": "anyio",
    "apscheduler": "apscheduler",
    "celery": "celery",
    "channels": "channels",
    "django_tenants": "django-tenants",
    "fastapi": "fastapi",
    "mcp": "mcp",
    "ninja": "django-ninja",
    "opentelemetry": "opentelemetry-instrumentation-django[asgi]",
    "opentelemetry.instrumentation.psycopg": "opentelemetry-instrumentation-psycopg",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "ormbridge": "ormbridge",
    "psycopg": "psycopg",
    "pytest": "pytest-django",
    "pytest_asyncio": "pytest-asyncio",
    "rest_framework": "adrf",
    "sentry_sdk": "sentry-sdk",
    "strawberry": "strawberry-graphql-django",
    "strawberry_django": "strawberry-graphql-django",
    "telegram": "python-telegram-bot",
    "websockets": "websockets",
}
#: What no import tells: words of a source, and what they need.
WORDS = {
    "ORMBRIDGE = ": "ormbridge",
    "PsycopgInstrumentor": "psycopg",
    "channels_redis": "channels-redis, Redis",
    "connection.set_schema_to_public": "django-tenants",
    "django.db.backends.mysql": "mysqlclient",
    "django.db.backends.postgresql": "psycopg",
    "django_tenants": "django-tenants",
    "django.tasks": "Django 6.0",
    "FETCH_": "Django 6.1",
    '"GREEN": ': "greenlet",
    "green=True": "greenlet",
    "sqlstate": "PostgreSQL",
}


def source(name: str) -> str:
    return markers.excerpt(recordings.example_path(ROOT, name).read_text(encoding="utf-8")).text


def imported(text: str) -> set[str]:
    """Return the modules that *text* imports, and that Python, Django or mysite do not have."""
    # A cell of a notebook awaits without a function around it.
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    found: set[str] = set()
    for node in ast.walk(compile(text, "example", "exec", flags)):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    left_out = {*sys.stdlib_module_names, "django", "asgiref", "mysite"}
    return {each for each in found if each.partition(".")[0] not in left_out}


def package(module: str) -> str:
    """Return what one installs for *module*: the longest name that is known."""
    known = [each for each in PACKAGES if f"{module}.".startswith(f"{each}.")]
    assert known, f"{module} is imported: say in PACKAGES what one installs for it"
    return PACKAGES[max(known, key=len)]


@pytest.mark.parametrize("name", recordings.examples(ROOT))
def test_head_names_what_is_needed(name: str):
    """What a block imports or speaks of stands in its head."""
    text = source(name)
    needed = {package(each) for each in imported(text)}
    needed |= {what for word, what in WORDS.items() if word in text}
    assert needed - set(places.place(name, text).needs) == set()
