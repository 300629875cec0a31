"""Whatever stands in the settings is accepted, or refused in a message that can be read."""

import os
import sys
import threading
from unittest.mock import patch

from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings
from hypothesis import example, given
from hypothesis import strategies as st

from ormbridge.core.settings import KEYS, import_reset, load_settings
from tests.core.support import HUGE


class Unspeakable:
    """A value of which no message can be made."""

    def __repr__(self):
        raise RuntimeError("no repr")

    def __eq__(self, other):
        raise RuntimeError("not to be compared")

    __hash__ = None


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(1).map(lambda number: number**200),
    st.floats(),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.text(),
    st.binary(),
    st.timedeltas(),
    st.lists(st.integers()),
    st.sampled_from([HUGE, -HUGE, [HUGE], "x" * 10_000, Unspeakable(), object, len, ..., "30"]),
)


@given(st.sampled_from([*KEYS, "MAX_THREAD", HUGE, "x" * 10_000, None]), ANYTHING)
@example("RESET", "x" * 10_000)
def test_any_key_and_value(key, value):
    """Whatever stands in ORMBRIDGE is accepted, or refused in a message that can be read."""
    with override_settings(ORMBRIDGE={key: value}):
        assert_accepted_or_refused()


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_any_asgi_threads(value):
    """Whatever stands in ASGI_THREADS is accepted, or refused in a message that can be read."""
    with patch.dict(os.environ, ASGI_THREADS=value):
        assert_accepted_or_refused()


@given(ANYTHING)
def test_anything_instead_of_a_dict(value):
    """Whatever ORMBRIDGE is, it is accepted, or refused in a message that can be read."""
    with override_settings(ORMBRIDGE=value):
        assert_accepted_or_refused()


def assert_accepted_or_refused():
    """Load the settings: the numbers are such as a thread can wait, or the message is readable."""
    refused = None
    try:
        settings = load_settings()
        import_reset(settings.reset)
    except ImproperlyConfigured as error:
        refused = str(error)
    if refused is None:
        assert 1 <= settings.max_threads <= sys.maxsize
        assert 0 < settings.timeout <= threading.TIMEOUT_MAX
        assert 0 < settings.max_idle <= threading.TIMEOUT_MAX
    else:
        assert refused.startswith(("settings.ORMBRIDGE", "the environment variable ASGI_THREADS"))
        assert len(refused) < 1000
