"""Settings: defaults, precedence, and an error for everything that is not understood."""

import os

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured

from ormbridge import database_sync_to_async
from ormbridge.settings import Settings, import_reset, load_settings
from tests.processes import run_python

ACCEPTED = "MAX_THREADS, TIMEOUT, MAX_IDLE, HTTP_LEASE, WEBSOCKET_LEASE, RESET"


def test_defaults():
    """Without settings: CPUs * 5 threads, 30 s of patience, 600 s idle, no RESET."""
    assert load_settings() == Settings(
        max_threads=os.cpu_count() * 5, timeout=30.0, max_idle=600.0, reset=None
    )


def test_asgi_threads_wins(monkeypatch, pool_settings):
    """ASGI_THREADS wins over MAX_THREADS, and MAX_THREADS over the default."""
    pool_settings(MAX_THREADS=7)
    assert load_settings().max_threads == 7
    monkeypatch.setenv("ASGI_THREADS", "3")
    assert load_settings().max_threads == 3


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MAX_THREADS", 0, "a whole number of 1 or more, or None for CPUs * 5"),
        ("MAX_THREADS", -1, "a whole number of 1 or more, or None for CPUs * 5"),
        ("MAX_THREADS", "10", "a whole number of 1 or more, or None for CPUs * 5"),
        ("MAX_THREADS", 2.0, "a whole number of 1 or more, or None for CPUs * 5"),
        ("MAX_THREADS", True, "a whole number of 1 or more, or None for CPUs * 5"),
        ("TIMEOUT", 0, "seconds, a number above 0"),
        ("TIMEOUT", None, "seconds, a number above 0"),
        ("TIMEOUT", "30", "seconds, a number above 0"),
        ("TIMEOUT", float("nan"), "seconds, a number above 0"),
        ("MAX_IDLE", -1.0, "seconds, a number above 0"),
        ("MAX_IDLE", float("inf"), "seconds, a number above 0"),
        ("RESET", len, "None or the dotted path of a callable"),
        ("RESET", 3, "None or the dotted path of a callable"),
    ],
)
def test_bad_value_is_refused(pool_settings, key, value, expected):
    """A bad value is an ImproperlyConfigured with the key, the value and what is accepted."""
    pool_settings(**{key: value})
    with pytest.raises(ImproperlyConfigured) as caught:
        load_settings()
    message = str(caught.value)
    assert message.startswith(f"settings.ORMBRIDGE[{key!r}] is {value!r}; expected {expected}")


@pytest.mark.parametrize("path", ["no_dots", "missing.module", "tests.test_settings.missing"])
def test_reset_that_cannot_be_imported_is_refused(path):
    """A RESET that cannot be imported is refused with its path and the reason."""
    with pytest.raises(ImproperlyConfigured) as caught:
        import_reset(path)
    assert str(caught.value).startswith(f"settings.ORMBRIDGE['RESET'] is {path!r}; expected None")


def test_reset_that_is_not_callable_is_refused():
    """A RESET that names something that cannot be called is refused."""
    with pytest.raises(ImproperlyConfigured, match="expected None or the dotted path"):
        import_reset("tests.test_settings.ACCEPTED")


def test_unknown_key_is_refused(pool_settings):
    """An unknown key is refused with the keys there are."""
    pool_settings(MAX_THREAD=3)
    with pytest.raises(ImproperlyConfigured) as caught:
        load_settings()
    assert str(caught.value) == (
        f"settings.ORMBRIDGE has the unknown key 'MAX_THREAD'; accepted are {ACCEPTED}"
    )


@pytest.mark.parametrize("value", [None, [], "MAX_THREADS"])
def test_what_is_not_a_dict_is_refused(settings, value):
    """An ORMBRIDGE that is not a dict is refused."""
    settings.ORMBRIDGE = value
    with pytest.raises(ImproperlyConfigured, match=r"settings\.ORMBRIDGE is .*; expected a dict"):
        load_settings()


@pytest.mark.parametrize("value", ["0", "-1", "abc", "", " 5", "1.5", "1_0", "٣"])
def test_bad_asgi_threads_is_refused(monkeypatch, value):
    """A bad ASGI_THREADS is refused with its value and what is accepted."""
    monkeypatch.setenv("ASGI_THREADS", value)
    with pytest.raises(ImproperlyConfigured) as caught:
        load_settings()
    assert str(caught.value) == (
        f"the environment variable ASGI_THREADS is {value!r}; expected a whole number of 1 or more"
    )


def test_bad_max_threads_is_refused_behind_asgi_threads(monkeypatch, pool_settings):
    """A bad MAX_THREADS is refused even where ASGI_THREADS wins over it."""
    monkeypatch.setenv("ASGI_THREADS", "3")
    pool_settings(MAX_THREADS=0)
    with pytest.raises(ImproperlyConfigured, match="MAX_THREADS"):
        load_settings()


async def test_first_call_refuses_bad_settings(pool_settings):
    """At the latest the first call fails where the settings are wrong."""
    pool_settings(MAX_THREADS=0)
    with pytest.raises(ImproperlyConfigured, match="MAX_THREADS"):
        await database_sync_to_async(len)("")


@pytest.mark.parametrize("values", [{"MAX_THREADS": 0}, {"RESET": "missing.module"}])
def test_check_reports_bad_settings(pool_settings, values):
    """manage.py check reports a setting that is not accepted as ormbridge.E001."""
    pool_settings(**values)
    assert [message.id for message in run_checks(tags=["ormbridge"])] == ["ormbridge.E001"]


def test_check_accepts_good_settings(pool_settings):
    """manage.py check says nothing of good settings."""
    pool_settings(MAX_THREADS=3, TIMEOUT=1, RESET="tests.test_settings.test_defaults")
    assert run_checks(tags=["ormbridge"]) == []


def test_import_refuses_bad_settings():
    """Where Django has its settings, importing the package fails if they are wrong."""
    result = run_python(
        """
        from django.conf import settings
        settings.configure(ORMBRIDGE={"TIMEOUT": 0})
        import ormbridge
        """
    )
    assert result.returncode == 1
    assert "ImproperlyConfigured: settings.ORMBRIDGE['TIMEOUT'] is 0" in result.stderr


def test_import_before_settings_is_fine():
    """The package can be imported before Django has its settings."""
    result = run_python("import ormbridge", ASGI_THREADS="2", DJANGO_SETTINGS_MODULE="")
    assert (result.returncode, result.stderr) == (0, "")
