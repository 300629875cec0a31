"""Tests that are about threads, in a run in which functions run on the event loop's thread."""

import os

import pytest

#: Set for a run of all tests with ``ORMBRIDGE["GREEN"]``.
GREEN = bool(os.environ.get("ORMBRIDGE_TEST_GREEN"))

on_threads = pytest.mark.skipif(
    GREEN, reason="it blocks the event loop's thread until a worker's own thread has gone on"
)
