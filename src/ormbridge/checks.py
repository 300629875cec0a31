"""What ``manage.py check`` says about the settings of the bridge, and of the databases under it.

An error where the bridge cannot work, a warning where it works badly. A check looks at settings
and at the application and URLconf that they name. It connects to no database and imports no driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.urls import URLResolver, get_resolver
from django.utils.module_loading import import_string

from .settings import import_reset, load_settings

# Words in the name of an engine that makes light of CONN_MAX_AGE = 0: SQLite opens a file, Django's
# placeholder nothing, and some engines of others bring a pool. By name, because vendor needs the
# driver, which need not be installed where the check runs.
_CONNECTS_LIGHTLY = ("sqlite", "spatialite", "dummy", "pool")


@checks.register("ormbridge")
def check_settings(app_configs: Any, **kwargs: Any) -> list[checks.CheckMessage]:
    """Return ``ormbridge.E001`` for a setting that is not accepted, or else the warnings."""
    try:
        own = load_settings()
        import_reset(own.reset)
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="ormbridge.E001")]
    return [
        checks.Warning(message, hint, obj=f"settings.DATABASES[{alias!r}]", id=f"ormbridge.{name}")
        for alias, database in connections.settings.items()
        for name, message, hint in _warnings(alias, database, own.max_threads)
    ]


def _warnings(alias: str, database: dict[str, Any], bound: int) -> Iterator[tuple[str, str, str]]:
    """Yield the name, message and hint of what will hurt with *bound* threads."""
    engine, host, port = database["ENGINE"], str(database["HOST"]), str(database["PORT"])
    name, age, pool = database["NAME"], database["CONN_MAX_AGE"], database["OPTIONS"].get("pool")

    if age == 0 and not pool and not any(word in engine for word in _CONNECTS_LIGHTLY):
        what = "CONN_MAX_AGE is 0, and there is no pool: each call, or request, connects anew"
        hint = "set it to seconds or None, with BridgeMiddleware; or, with psycopg, OPTIONS['pool']"
        yield "W001", what, hint

    if age != 0 and (application := _bare_application()):
        what = f"CONN_MAX_AGE is {age}, and {application} is not in BridgeMiddleware"
        hint = "write application = BridgeMiddleware(application) in that module"
        yield "W002", f"{what}: each request leaves its connection behind", hint

    memory = isinstance(name, str) and (name == ":memory:" or "mode=memory" in name)
    if memory and "cache=shared" not in name and bound > 1:
        what = f"NAME is {name!r}: each of up to {bound} threads has a database of its own"
        yield "W003", what, "let NAME be a file"

    sizes = pool if isinstance(pool, dict) else {}
    size = sizes.get("max_size") or sizes.get("min_size", 4)  # psycopg_pool's defaults
    if "postg" in engine and pool and bound > size:
        what = f"OPTIONS['pool'] allows {size} connections to up to {bound} threads"
        hint = f"set its max_size to {bound}, or MAX_THREADS (ASGI_THREADS) to {size}"
        yield "W004", f'{what}: calls may fail with "couldn\'t get a connection"', hint

    bouncer = port == "6432" or "pgbouncer" in host.lower()
    if "postg" in engine and bouncer and not database.get("DISABLE_SERVER_SIDE_CURSORS"):
        what = f"DISABLE_SERVER_SIDE_CURSORS is False, and {host}:{port} looks like PgBouncer"
        hint = "set it to True, and leave OPTIONS['prepare_threshold'] out"
        yield "W005", f"{what}: if it pools transactions, iterator() loses its cursor", hint

    if database["ATOMIC_REQUESTS"] and (views := _async_views(alias)):
        what = (
            f"ATOMIC_REQUESTS is True, which Django refuses to async views: {', '.join(views[:3])}"
        )
        hint = f"decorate them with @transaction.non_atomic_requests(using={alias!r})"
        yield "W006", what + (f" and {len(views) - 3} more" if len(views) > 3 else ""), hint

    if not database["AUTOCOMMIT"]:
        what = "AUTOCOMMIT is False: what a call leaves uncommitted is rolled back as it ends"
        yield "W007", what, "leave AUTOCOMMIT out, and use transaction.atomic()"


def _bare_application() -> str | None:
    """Return the path of the ASGI application if it can be seen to lack ``BridgeMiddleware``."""
    package = str(getattr(settings, "ROOT_URLCONF", "")).rpartition(".")[0]
    path = getattr(settings, "ASGI_APPLICATION", None) or f"{package}.asgi.application"
    with suppress(Exception):  # whatever its module raises, or a ring of applications
        return None if _bridged(import_string(path)) else path
    return None


def _bridged(application: Any) -> bool:
    from .middleware import BridgeMiddleware

    # Where wrappers keep what they wrap; the last is Channels' ProtocolTypeRouter.
    inside = [getattr(application, name, None) for name in ("application", "app", "inner")]
    inside.append(getattr(application, "application_mapping", {}).get("http"))
    return isinstance(application, BridgeMiddleware) or any(map(_bridged, filter(None, inside)))


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
