"""Read and check ``settings.ORMBRIDGE`` and ``ASGI_THREADS``.

One dict, every key optional, psycopg_pool's words. A key or value that is not understood is an
``ImproperlyConfigured`` that names the key, the value and what is accepted; nothing is guessed.
A number too large for the system is as good as the largest that it knows.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

_RESET_EXPECTED = "None or the dotted path of a callable that takes a database connection"

#: Clears state of the session on one of Django's connections.
Reset = Callable[[Any], object]
# Characters of a value that a message shows.
_LONG = 200


def _max_threads(key: str, value: Any) -> int:
    # The setting is checked even where the variable wins: it would fail on the next machine.
    expected = "a whole number of 1 or more"
    if value is not None and (type(value) is not int or value < 1):
        raise _refused(_setting(key), value, f"{expected}, or None for CPUs * 5")
    variable = os.environ.get("ASGI_THREADS")
    if variable is not None:
        # isdecimal alone would let other scripts' digits pass; int() alone "1_0" and " 5 ".
        digits = variable.lstrip("0")
        if not (digits.isascii() and digits.isdecimal()):
            raise _refused("the environment variable ASGI_THREADS", variable, expected)
        value = int(digits[:20])  # Python refuses to read thousands; 20 are above sys.maxsize
    return min(value or (os.cpu_count() or 1) * 5, sys.maxsize)


def _seconds(key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise _refused(_setting(key), value, "seconds, a number above 0")
    return float(min(value, threading.TIMEOUT_MAX))  # about 292 years; no lock waits longer


def _choice(accepted: tuple[Any, ...], key: str, value: Any) -> Any:
    if type(value) not in (str, bool) or value not in accepted:
        raise _refused(_setting(key), value, " or ".join(map(repr, accepted)))
    return value


def _reset(key: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise _refused(_setting(key), value, _RESET_EXPECTED)
    return value


def _key(default: Any, check: Callable[[str, Any], Any]) -> Any:
    """Have a key in ``settings.ORMBRIDGE`` that is *default*, and what checks it and returns it."""
    return field(default=default, metadata={"check": check})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings in force; by these names in capitals they stand in ``settings.ORMBRIDGE``."""

    #: The bound: workers that may exist at one time.
    max_threads: int = _key(None, _max_threads)  # CPUs * 5
    #: Seconds a call waits for a worker before it fails with ``PoolTimeout``.
    timeout: float = _key(30.0, _seconds)
    #: Seconds a worker stays without a call before it ends and closes its connections.
    max_idle: float = _key(600.0, _seconds)
    #: How long HTTP holds a worker under BridgeMiddleware: for a ``"request"`` or a ``"call"``; or,
    #: ``"auto"``, to the end of a request from its first call that may leave something behind.
    http_lease: str = _key("auto", partial(_choice, ("auto", "request", "call")))
    #: How long a WebSocket does: for a ``"call"`` or a ``"connection"``.
    websocket_lease: str = _key("call", partial(_choice, ("call", "connection")))
    #: Dotted path of the callable that clears session state as a lease ends; see
    #: :func:`import_reset`.
    reset: str | None = _key(None, _reset)
    #: What runs on the event loop's thread (``green/``): nothing, what says so, or ``"all"``.
    green: bool | str = _key(False, partial(_choice, (False, True, "all")))
    #: Seconds after which a function that blocks the event loop there is named in the log.
    green_slow: float = _key(0.1, _seconds)


#: What may stand in ``settings.ORMBRIDGE``.
KEYS = {each.name.upper(): each for each in fields(Settings)}


def load_settings() -> Settings:
    """Return the settings in force.

    ``ASGI_THREADS`` wins over ``MAX_THREADS``; without either the bound is CPUs * 5.

    :raises ImproperlyConfigured: if a key is unknown or a value is not accepted.
    """
    given = getattr(django_settings, "ORMBRIDGE", {})
    accepted = ", ".join(KEYS)
    if not isinstance(given, Mapping):
        raise _refused("settings.ORMBRIDGE", given, f"a dict with any of {accepted}")
    for key in given:
        if key not in KEYS:
            what = f"settings.ORMBRIDGE has the unknown key {_shown(key)}; accepted are {accepted}"
            raise ImproperlyConfigured(f"{what} [setting-refused]")
    checks = ((key, each.default, each.metadata["check"]) for key, each in KEYS.items())
    return Settings(*(check(key, given.get(key, default)) for key, default, check in checks))


def import_reset(path: str | None) -> Reset | None:
    """Return the callable that ``RESET`` names.

    Apart from :func:`load_settings`, because its module may itself import this package.

    :raises ImproperlyConfigured: if *path* cannot be imported or names something else.
    """
    if path is None:
        return None
    try:
        reset = import_string(path)
    except Exception as error:  # a path may be wrong in many ways, and a module raise anything
        expected = f"{_RESET_EXPECTED} ({str(error)[:_LONG]})"
        raise _refused(_setting("RESET"), path, expected) from error
    if not callable(reset):
        raise _refused(f"{_setting('RESET')} is {_shown(path)}, which", reset, _RESET_EXPECTED)
    return reset  # type: ignore[no-any-return]


def _setting(key: str) -> str:
    return f"settings.ORMBRIDGE[{key!r}]"


def _refused(name: str, value: Any, expected: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{name} is {_shown(value)}; expected {expected} [setting-refused]")


def _shown(value: Any) -> str:
    """Return *value* as a message shows it: in part if it is long, and whatever its repr does."""
    try:
        shown = repr(value)
    except Exception:  # that of an int fails above 4,300 digits
        shown = object.__repr__(value)
    return shown if len(shown) <= _LONG else f"{shown[:_LONG]}…"
