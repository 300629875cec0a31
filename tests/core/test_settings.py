"""Settings: defaults, precedence, and an error for everything that is not understood."""

import asyncio
import os
import sys
from dataclasses import replace

import pytest
from django.core.exceptions import ImproperlyConfigured

from ormbridge.core.bridge import database_sync_to_async
from ormbridge.core.errors import PoolTimeout
from ormbridge.core.process import end_pools, stats
from ormbridge.core.settings import KEYS, Settings, import_reset, load_settings
from tests.core.gate import GUARD
from tests.core.support import HUGE

ACCEPTED = "MAX_THREADS, TIMEOUT, MAX_IDLE, HTTP_LEASE, WEBSOCKET_LEASE, RESET, GREEN, GREEN_SLOW"


def test_defaults():
    """Without settings: CPUs * 5 threads, 30 s of patience, 600 s idle, no RESET."""
    expected = Settings(max_threads=os.cpu_count() * 5, timeout=30.0, max_idle=600.0, reset=None)
    of_run = KEYS["GREEN"].default  # which may be a green one
    assert load_settings() == replace(expected, green=of_run)


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


@pytest.mark.parametrize("path", ["no_dots", "missing.module", "tests.core.test_settings.missing"])
def test_reset_that_cannot_be_imported_is_refused(path):
    """A RESET that cannot be imported is refused with its path and the reason."""
    with pytest.raises(ImproperlyConfigured) as caught:
        import_reset(path)
    assert str(caught.value).startswith(f"settings.ORMBRIDGE['RESET'] is {path!r}; expected None")


def test_reset_that_is_not_callable_is_refused():
    """A RESET that names something that cannot be called is refused."""
    with pytest.raises(ImproperlyConfigured, match="expected None or the dotted path"):
        import_reset("tests.core.test_settings.ACCEPTED")


def test_unknown_key_is_refused(pool_settings):
    """An unknown key is refused with the keys there are."""
    pool_settings(MAX_THREAD=3)
    with pytest.raises(ImproperlyConfigured) as caught:
        load_settings()
    assert str(caught.value) == (
        "settings.ORMBRIDGE has the unknown key 'MAX_THREAD'; "
        f"accepted are {ACCEPTED} [setting-refused]"
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
        f"the environment variable ASGI_THREADS is {value!r}; "
        "expected a whole number of 1 or more [setting-refused]"
    )


def test_bad_max_threads_is_refused_behind_asgi_threads(monkeypatch, pool_settings):
    """A bad MAX_THREADS is refused even where ASGI_THREADS wins over it."""
    monkeypatch.setenv("ASGI_THREADS", "3")
    pool_settings(MAX_THREADS=0)
    with pytest.raises(ImproperlyConfigured, match="MAX_THREADS"):
        load_settings()


@pytest.mark.parametrize("path", [".x", "..a.b", "a\0.b", "\ud800.x", "x." * 300, "failing.x"])
def test_reset_whose_import_fails_in_another_way(path, monkeypatch, tmp_path):
    """Whatever error the import of RESET ends in, it is refused with its path and the reason."""
    (tmp_path / "failing.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImproperlyConfigured) as caught:
        import_reset(path)
    start = repr(path)[:200]
    assert str(caught.value).startswith(f"settings.ORMBRIDGE['RESET'] is {start}")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("key", ["TIMEOUT", "MAX_IDLE"])
@pytest.mark.parametrize(
    "seconds",
    [HUGE, 10**400, sys.float_info.max, 1e10, 5e-324],
    ids=["5000-digits", "400-digits", "largest-float", "317-years", "smallest-float"],
)
async def test_extreme_seconds_work(pool_settings, gate, key, seconds):
    """Calls run, wait and end with the longest and the shortest TIMEOUT and MAX_IDLE."""
    pool_settings(**{key: seconds, "MAX_THREADS": 1})
    first = asyncio.create_task(database_sync_to_async(gate)())
    await gate.entered()
    second = asyncio.create_task(database_sync_to_async(len)("ab"))
    if (key, seconds) == ("TIMEOUT", 5e-324):
        with pytest.raises(PoolTimeout):
            await second
    else:
        await asyncio.sleep(0)
        assert stats().waiting == 1
    gate.open.set()
    assert await asyncio.wait_for(first, GUARD) == "ormbridge-worker-1"
    assert await asyncio.wait_for(database_sync_to_async(len)("abc"), GUARD) == 3
    end_pools(GUARD)


@pytest.mark.parametrize(
    "number", [HUGE, 10**30, sys.maxsize], ids=["5000-digits", "30-digits", "maxsize"]
)
@pytest.mark.parametrize("by", ["MAX_THREADS", "ASGI_THREADS"])
async def test_extreme_number_of_threads_works(pool_settings, monkeypatch, by, number):
    """However many threads are allowed, calls run, and messages can name the bound."""
    if by == "MAX_THREADS":
        pool_settings(MAX_THREADS=number)
    else:
        monkeypatch.setenv("ASGI_THREADS", str(number) if number != HUGE else "9" * 5000)
    assert await database_sync_to_async(len)("ab") == 2
    assert stats().max_threads == sys.maxsize
    assert f"0 of {sys.maxsize} leased" in stats().shortage(1.0)


def test_asgi_threads_of_any_length(monkeypatch):
    """Zeros before the number change nothing, however many."""
    monkeypatch.setenv("ASGI_THREADS", "0" * 5000 + "12")
    assert load_settings().max_threads == 12


async def test_first_call_refuses_bad_settings(pool_settings):
    """At the latest the first call fails where the settings are wrong."""
    pool_settings(MAX_THREADS=0)
    with pytest.raises(ImproperlyConfigured, match="MAX_THREADS"):
        await database_sync_to_async(len)("")
