"""The page ``versions``: each of its rows has a proof, and what only this page says is so."""

import inspect
import re
from pathlib import Path

from asgiref.sync import ThreadSensitiveContext, sync_to_async

from tests.settings import CHOICE

PAGE = (Path(__file__).parents[2] / "docs" / "versions.md").read_text(encoding="utf-8")


def parameters(of):
    """Return the parameters of a function or class, by name."""
    return inspect.signature(of).parameters


def test_each_row_has_a_test_or_a_link():
    """No row of the page says anything without a proof: a test, or a link to who says it."""
    rows = [line for line in PAGE.splitlines() if re.match(r"\| (pool )?\d", line)]
    assert 25 <= len(rows)
    assert [] == [row for row in rows if "[^" not in row and "](https://" not in row]


def test_context_takes_an_executor():
    """``ThreadSensitiveContext`` has the parameter that the bridge hands its workers over by."""
    assert "executor" in parameters(ThreadSensitiveContext)


def test_sync_to_async_takes_a_context():
    """``sync_to_async`` has the parameter ``context``, which is None unless it is given."""
    assert parameters(sync_to_async)["context"].default is None


def test_thread_sensitive_is_the_default():
    """``sync_to_async`` is thread-sensitive unless it is told otherwise."""
    assert parameters(sync_to_async)["thread_sensitive"].default is True


if CHOICE == "postgresql":

    def test_psycopg_can_cancel_safely():
        """A connection of psycopg has ``cancel_safe`` with a time limit."""
        from psycopg import Connection

        assert "timeout" in parameters(Connection.cancel_safe)
