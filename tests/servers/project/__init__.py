"""The project that the servers serve: code of Django and Channels as people write it."""

LOCK = 1
"""The advisory lock of PostgreSQL with which a test holds everybody who runs `queries.wait`."""
