"""What ``manage.py check`` says about the settings of the bridge, and of the databases under it.

An error where the bridge cannot work, a warning where it works badly. A check looks at settings
and at the application and URLconf that they name. It connects to no database and imports no driver.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIHandler
from django.db import connections
from django.urls import URLResolver, get_resolver
from django.utils.module_loading import import_string

from .core.settings import Settings, import_reset, load_settings
from .green import missing

# Words in the name of an engine that makes light of CONN_MAX_AGE = 0: SQLite opens a file, Django's
# placeholder nothing, and some engines of others bring a pool. By name, because vendor needs the
# driver, which need not be installed where the check runs.
_CONNECTS_LIGHTLY = ("sqlite", "spatialite", "dummy", "pool")

# Words in the name of an engine that keeps a tenant on the connection or the thread, and of one
# that keeps it in a context variable, and sets it on the session only.
_TENANTS, _TENANTS_OF_CONTEXTS = ("tenan", "boardinghouse"), "pgschemas"

# Where the classes live that hand a request on to what they keep under one of the names below.
# What a function or a class of anybody else's does with it cannot be seen.
_HAND_ON = (
    *("channels.", "django.contrib.", "django.core.", "django.urls."),
    *("opentelemetry.", "sentry_sdk.", "starlette.middleware.", "uvicorn.middleware."),
)


def check_settings(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """Return ``ormbridge.E001`` for a setting that is not accepted, or else the warnings."""
    try:
        own = load_settings()
        import_reset(own.reset)
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="ormbridge.E001")]
    warnings: list[checks.CheckMessage] = [
        checks.Warning(message, hint, obj=f"settings.DATABASES[{alias!r}]", id=f"ormbridge.{name}")
        for alias, database in connections.settings.items()
        for name, message, hint in _found(alias, database, own)
    ]
    if own.green and (lack := missing()):
        what = f"ORMBRIDGE['GREEN'] is {own.green!r}, and {lack}: everything runs on threads"
        hint = "install ormbridge[green], use PostgreSQL with psycopg 3, or leave GREEN out"
        warnings.append(checks.Warning(what, hint, id="ormbridge.W011"))
    if os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
        what = "DJANGO_ALLOW_ASYNC_UNSAFE is set: a plain query in a coroutine runs outside of its"
        hint = "unset it, and use a-methods or database_sync_to_async"
        warnings.append(checks.Warning(f"{what} atomic()", hint, id="ormbridge.W008"))
    return warnings


def _found(alias: str, database: dict[str, Any], own: Settings) -> Iterator[tuple[str, str, str]]:
    """Yield the name, message and hint of what will hurt with the settings *own* of the bridge."""
    engine, host, port = database["ENGINE"], str(database["HOST"]), str(database["PORT"])
    name, age, options = database["NAME"], database["CONN_MAX_AGE"], database["OPTIONS"]
    pool, bound, ours = options.get("pool"), own.max_threads, "postg" in engine or "psql" in engine

    if age == 0 and not pool and not any(word in engine for word in _CONNECTS_LIGHTLY):
        what = "CONN_MAX_AGE is 0, and there is no pool: each call, or request, connects anew"
        hint = "set it to seconds or None, with BridgeMiddleware; or, with psycopg, OPTIONS['pool']"
        yield "W001", what, hint

    if age != 0 and (application := _bare_application()):
        what = f"CONN_MAX_AGE is {age}, and {application} is not in BridgeMiddleware"
        hint = "write application = ormbridge.BridgeMiddleware(application) in that module"
        yield "W002", f"{what}: each request leaves its connection behind", hint

    memory = isinstance(name, str) and (name == ":memory:" or "mode=memory" in name)
    if memory and "cache=shared" not in name and bound > 1:
        what = f"NAME is {name!r}: each of up to {bound} threads has a database of its own"
        yield "W003", what, "let NAME be a file"

    sizes = pool if isinstance(pool, dict) else {}
    size = sizes.get("max_size") or sizes.get("min_size", 4)  # psycopg_pool's defaults
    if ours and pool and bound > size:
        what = f"OPTIONS['pool'] allows {size} connections to up to {bound} threads"
        hint = f"set its max_size to {bound}, or MAX_THREADS (ASGI_THREADS) to {size}"
        yield "W004", f'{what}: calls may fail with "couldn\'t get a connection"', hint

    bouncer = ours and (port == "6432" or "pgbouncer" in host.lower())
    if bouncer and not database.get("DISABLE_SERVER_SIDE_CURSORS"):
        what = f"DISABLE_SERVER_SIDE_CURSORS is False, and {host}:{port} looks like PgBouncer"
        hint = "set it to True, and leave OPTIONS['prepare_threshold'] out"
        yield "W005", f"{what}: if it pools transactions, iterator() loses its cursor", hint

    if database["ATOMIC_REQUESTS"] and (views := _async_views(alias)):
        shown = ", ".join(views[:3])
        what = f"ATOMIC_REQUESTS is True, which Django refuses to async views: {shown}"
        hint = f"decorate them with @transaction.non_atomic_requests(using={alias!r})"
        yield "W006", what + (f" and {len(views) - 3} more" if len(views) > 3 else ""), hint

    if not database["AUTOCOMMIT"]:
        what = "AUTOCOMMIT is False: what a call leaves uncommitted is rolled back as it ends"
        yield "W007", what, "leave AUTOCOMMIT out, and use transaction.atomic()"

    tenants = any(word in engine for word in _TENANTS)
    # django-multitenant has a setting to keep its tenant in a context variable.
    of_thread = not getattr(settings, "TENANT_USE_ASGIREF", False)
    if "multitenant" in engine and of_thread and own.green:
        what = f"ENGINE is {engine!r}, and ORMBRIDGE['GREEN'] is {own.green!r}"
        yield "W009", f"{what}: calls meet each other's tenant", "set TENANT_USE_ASGIREF = True"
    elif tenants and of_thread and own.reset is None:
        what = f"ENGINE is {engine!r}, and ORMBRIDGE['RESET'] is None"
        hint = "let RESET name a function that calls connection.set_schema_to_public(), or the like"
        yield "W009", f"{what}: the next call on a worker meets the tenant of the last one", hint

    signs = {f"OPTIONS[{key!r}]": options.get(key) for key in ("assume_role", "options")}
    signs |= {"ENGINE": tenants or _TENANTS_OF_CONTEXTS in engine, "RESET": own.reset}
    if bouncer and (names := ", ".join(filter(signs.get, signs))):
        what = f"{names}: state of the session, it seems, and {host}:{port} looks like PgBouncer"
        hint = "use SET LOCAL in atomic(), or let PgBouncer have pool_mode = session"
        yield "W010", f"{what}: if it pools transactions, a call may meet that of others", hint


def _bare_application() -> str | None:
    """Return the path of the ASGI application if it can be seen to lack ``BridgeMiddleware``."""
    package = str(getattr(settings, "ROOT_URLCONF", "")).rpartition(".")[0]
    path = getattr(settings, "ASGI_APPLICATION", None) or f"{package}.asgi.application"
    with suppress(Exception):  # whatever its module raises, or a ring of applications
        return path if _bare(import_string(path)) else None
    return None


def _bare(application: Any) -> bool:
    """Say whether requests are seen to come to Django's handler without ``BridgeMiddleware``."""
    if not type(application).__module__.startswith(_HAND_ON):
        return False
    # Where they keep it; the last two are Channels' ProtocolTypeRouter, and its URLRouter.
    names = ("application", "app", "inner", "callback")
    inside = [getattr(application, name, None) for name in names]
    inside.append(getattr(application, "application_mapping", {}).get("http"))
    inside += getattr(application, "routes", ())
    return type(application) is ASGIHandler or any(map(_bare, inside))


def _async_views(alias: str) -> list[str]:
    """Return the names of the async views that ``ATOMIC_REQUESTS`` of *alias* applies to."""
    with suppress(Exception):  # Django's own checks report a URLconf that does not work
        return list(dict.fromkeys(_walk(get_resolver(), alias)))
    return []


def _walk(resolver: URLResolver, alias: str) -> Iterator[str]:
    for pattern in resolver.url_patterns:
        if isinstance(pattern, URLResolver):
            yield from _walk(pattern, alias)
            continue
        exempt = alias in getattr(pattern.callback, "_non_atomic_requests", ())
        # Not inspect's: on Python 3.11 that knows no class-based view.
        if not exempt and iscoroutinefunction(pattern.callback):  # pyright: ignore[reportDeprecated]
            yield pattern.lookup_str
