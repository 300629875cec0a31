"""What ``manage.py check`` says about the settings of the bridge."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error, register
from django.core.exceptions import ImproperlyConfigured

from .settings import import_reset, load_settings


@register("ormbridge")
def check_settings(app_configs: Any, **kwargs: Any) -> list[CheckMessage]:
    """``ormbridge.E001``: a setting or ``ASGI_THREADS`` is not accepted."""
    try:
        import_reset(load_settings().reset)
    except ImproperlyConfigured as error:
        return [Error(str(error), id="ormbridge.E001")]
    return []
