"""``atomic()`` and ``pinned()``, and what became of a transaction."""
